"""What a meta-test will do, decided before any weights are loaded: settings, adaptations, datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.adaptation import check_adaptation, has_search, needs_experts
from smatcli.adaptation.exhaustive import check_experts
from smatcli.config import load_recipe
from smatcli.config.schema import TrainRecipe
from smatcli.engine.run import RunDir
from smatcli.errors import UserError, nearest

FREE = ("eval", "adapt", "data.id", "data.ood", "data.ood_split", "data.root", "threads")


@dataclass(frozen=True)
class Dataset:
    """A dataset's part in the meta-test: `domain` ID or OOD, and the split of its classes."""

    name: str
    domain: str
    split: str


def plan(run: Path | str, adapts: Sequence[str] | None = None, episodes: int | None = None, overrides: Sequence[str] = ()) -> TrainRecipe:
    """The run's recipe as it will be evaluated; UserError for whatever can be refused without loading weights."""
    path = RunDir.open(run).path
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise UserError(f"{key}: cannot be changed after training; smat eval takes {', '.join(FREE)}{nearest(key, list(FREE))}")
    given = [*overrides] + ([f"eval.episodes={episodes}"] if episodes is not None else [])
    if adapts:
        for name in adapts:
            check_adaptation(name)
        given.append(f"eval.adapt=[{', '.join(dict.fromkeys(adapts))}]")
    recipe = load_recipe(path / "recipe.yaml", given).recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(
            f"{run}: is a {recipe.kind} run; meta-test a run of `smat train` (method 'pretrained' evaluates a backbone as it is)"
        )
    if not recipe.eval.adapt:
        raise UserError("no adaptation is named; add --adapt proto")
    for name in recipe.eval.adapt:
        check_adaptation(name)
        experts: int | None = getattr(recipe.method, "experts", None)
        if needs_experts(name) and experts is None:
            raise UserError(f"{name} needs a method with experts; {run} is {recipe.method.name}: use --adapt proto")
        if name == "exhaustive" and experts is not None:
            check_experts(experts)
    _check_rates(recipe, overrides)
    return recipe


def _check_rates(recipe: TrainRecipe, overrides: Sequence[str]) -> None:
    """A rate is given or searched; what is asked of fine-tuning is asked of an adaptation that does it."""
    adapts, settings = recipe.eval.adapt, recipe.adapt
    asked = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    for name in adapts:
        if settings.search.kind == "none" and getattr(getattr(settings, name, None), "lr", 0) is None:
            raise UserError(f"{name} needs a learning rate: give adapt.{name}.lr=0.001, or let it be chosen by --search valid")
    if asked.get("adapt.search.kind") == "paper" and not any(has_search(name, settings) for name in adapts):
        raise UserError(f"search paper: {', '.join(adapts)} has no learning rate to be searched (adapt.NAME.lr is null where it is)")
    watched = [name for name in adapts if getattr(getattr(settings, name, None), "trajectory", False)]
    if not watched and any(key.endswith(".trajectory") and value == "true" for key, value in asked.items()):
        raise UserError(f"trajectory: {', '.join(adapts)} takes no gradient steps; add --adapt full, lora, joint or dipa")


def choose_datasets(recipe: TrainRecipe, names: Sequence[str] | None = None) -> list[Dataset]:
    """The recipe's in-domain and out-of-domain datasets, or those of `names` among them; UserError with the nearest name."""
    data = recipe.data
    both = sorted(set(data.id) & set(data.ood))
    if both:
        raise UserError(f"data.id and data.ood both name {', '.join(both)}; a dataset is one or the other")
    known = [Dataset(n, "ID", "test") for n in dict.fromkeys(data.id)] + [
        Dataset(n, "OOD", data.ood_split) for n in dict.fromkeys(data.ood)
    ]
    if not known:
        raise UserError("the recipe names no dataset to meta-test on; add data.id=[...] or data.ood=[...]")
    roles = [d.name for d in known]
    for name in names or []:
        if name not in roles:
            hint = nearest(name, roles) or f"; they are {', '.join(roles)} (add it by data.ood=[{name}])"
            raise UserError(f"dataset {name}: not in data.id or data.ood of this run{hint}")
    return [d for d in known if not names or d.name in names]
