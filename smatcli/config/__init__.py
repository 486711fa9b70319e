"""Recipes: schema, loading, overrides, origins. Does not import torch."""

from smatcli.config.find import find_recipe, packaged_recipes, recipes_root
from smatcli.config.loader import Loaded, build_recipe, dump_recipe, load_recipe
from smatcli.config.schema import PretrainRecipe, Recipe, TrainRecipe
from smatcli.config.yaml_text import flow as value_text

__all__ = [
    "Loaded",
    "PretrainRecipe",
    "Recipe",
    "TrainRecipe",
    "build_recipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "packaged_recipes",
    "recipes_root",
    "value_text",
]
