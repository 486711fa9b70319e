"""pMoE written out from the equations of docs/pmoe.md: one image, one expert, one token at a time, in float64."""

import math

import torch
from torch import Tensor

ACTS = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def _dense(weight: Tensor, bias: Tensor, vector: list[float]) -> list[float]:
    rows, offset = weight.tolist(), bias.tolist()
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in zip(rows, offset, strict=True)]


def _mlp(state: dict[str, Tensor], prefix: str, token: list[float], act: str) -> list[float]:
    hidden = [ACTS[act](h) for h in _dense(state[f"{prefix}first.weight"], state[f"{prefix}first.bias"], token)]
    return _dense(state[f"{prefix}second.weight"], state[f"{prefix}second.bias"], hidden)


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def _scores(state: dict[str, Tensor], prefix: str, token: list[float], act: str) -> list[float]:
    """Return the K scores of one token, from a dispatching MLP or from several behind a router."""
    if f"{prefix}router.weight" not in state:
        return _mlp(state, prefix, token, act)
    shares = _softmax(_dense(state[f"{prefix}router.weight"], state[f"{prefix}router.bias"], token))
    each = [_mlp(state, f"{prefix}mlps.{e}.", token, act) for e in range(len(shares))]
    return [sum(s * scores[k] for s, scores in zip(shares, each, strict=True)) for k in range(len(each[0]))]


def pmoe_features(experts, images: Tensor, act: str = "gelu") -> Tensor:
    """Return the features [B, D] of a `PromptedExperts` in float64, computed by loops."""
    state = experts.state_dict()
    vits, count, n_prompts = experts.vits, experts.count, experts.prompts.shape[2]

    def read(k: int, token: Tensor) -> Tensor:
        return state[f"reads.{k}.weight"] @ token + state[f"reads.{k}.bias"] if f"reads.{k}.weight" in state else token

    def write(k: int, token: Tensor) -> Tensor:
        return state[f"writes.{k}.weight"] @ token + state[f"writes.{k}.bias"] if f"writes.{k}.weight" in state else token

    outputs = []
    for image in images:
        tokens = [vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))[0] for vit in vits]
        entered: list[list[Tensor]] = [[] for _ in vits]
        left: list[list[Tensor]] = [[] for _ in vits]
        for layer in range(experts.depth):
            entering: list[list[Tensor]] = []
            for k in range(count):
                row = []
                for n in range(n_prompts):
                    if layer >= experts.layers:
                        new, old = left[k][n], entered[k][n]
                    else:
                        new = write(k, _integrated(experts, state, layer, k, n, tokens, left, read, act))
                        old = left[k][n] if layer else new
                    gate = 1.0 if experts.gates is None or layer == 0 else 1 / (1 + math.exp(-float(experts.gates[layer - 1, k])))
                    row.append(gate * new + (1 - gate) * old)
                entering.append(row)
            for k, vit in enumerate(vits):
                start = vit.num_prefix_tokens
                whole = vit.blocks[layer](torch.cat([tokens[k][:start], torch.stack(entering[k]), tokens[k][start:]])[None])[0]
                entered[k] = entering[k]
                left[k] = [whole[start + n] for n in range(n_prompts)]
                tokens[k] = torch.cat([whole[:start], whole[start + n_prompts :]])
        final = [read(k, vit.forward_head(vit.norm(tokens[k])[None], pre_logits=True)[0]) for k, vit in enumerate(vits)]
        outputs.append(sum(final) / count)
    return torch.stack(outputs)


def _integrated(experts, state, layer, k, n, tokens, left, read, act) -> Tensor:
    prompts = state["prompts"][layer]
    if experts.kind == "none":
        return prompts[k, n]
    if experts.kind == "average":
        return sum(prompts[j, n] for j in range(experts.count)) / experts.count
    mlps = len({name.split(".")[3] for name in state if name.startswith(f"dispatchers.{layer}.mlps.")})
    prefix = [f"dispatchers.{layer}.mlps.{i % mlps}." for i in range(3)]
    scores = _scores(state, prefix[0], prompts[k, n].tolist(), act)
    if left[k]:
        scores = [a + b for a, b in zip(scores, _scores(state, prefix[1], read(k, left[k][n]).tolist(), act), strict=True)]
    patches = [read(k, token) for token in tokens[k][experts.vits[k].num_prefix_tokens :]]
    each = [_scores(state, prefix[2], patch.tolist(), act) for patch in patches]
    scores = [s + sum(e[j] for e in each) / len(each) for j, s in enumerate(scores)]
    weights = _softmax(scores)
    return sum(w * prompts[j, n] for j, w in enumerate(weights))
