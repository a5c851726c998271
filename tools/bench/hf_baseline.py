"""The baseline: Hugging Face transformers' generate under the rules of adx.

A rule is a LogitsProcessor that runs proxies, each with its own key/value cache, next to generate's teacher: an early
exit of it with a translator, or two copies of one whose weights are moved along a direction. Batches are padded on
the left and run until their last row has ended, which is what generate does.
"""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import multiprocessing
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from adx import checkpoints
from adx.models import family_of
from adx.models.names import hf_tensors
from adx.models.transformer import Model, Params, make_model

Tokens = Sequence[int]


@dataclasses.dataclass(frozen=True)
class ProductOfExperts:
    """(1 - gamma) lp_T + gamma lp_S, of one proxy."""

    gamma: float

    def scores(self, teacher_BV: torch.Tensor, proxies: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.lerp(teacher_BV, proxies[0], self.gamma)


@dataclasses.dataclass(frozen=True)
class Antidistillation:
    """lp_T + lam (log p(theta + eps g) - log p(theta - eps g)) / 2 eps, of two copies of one proxy.

    Log-probs of the copies are at temperature 1 (arXiv 2504.13146); what they share over the vocabulary cancels.
    direction: a file of g, see `write_direction`.
    """

    lam: float
    eps: float
    direction: str

    def scores(self, teacher_BV: torch.Tensor, proxies: Sequence[torch.Tensor]) -> torch.Tensor:
        plus_BV, minus_BV = (torch.log_softmax(logits, dim=-1) for logits in proxies)
        return teacher_BV + self.lam * (plus_BV - minus_BV) / (2 * self.eps)


@dataclasses.dataclass(frozen=True)
class Serving:
    """The rule, and the temperature it works at. protected: ids that keep the teacher's mass; eos: that end a row."""

    rule: ProductOfExperts | Antidistillation
    temperature: float
    protected: tuple[int, ...]
    eos: tuple[int, ...]


def export(source: str, directory: pathlib.Path) -> pathlib.Path:
    """Writes the float32 weights of `source` for transformers, once. Returns `directory`."""
    if not (directory / 'config.json').exists():
        loaded = checkpoints.load(source)
        checkpoints.save_hf(str(directory), loaded.model, loaded.params)
    return directory


def write_direction(path: str, model: Model, direction: Params) -> None:
    """Saves weights of an early exit under the names that `Proxy` gives them."""
    import safetensors.numpy

    plain = make_model(dataclasses.replace(model.config, translator=False))
    tensors = hf_tensors(family_of(plain.config), plain)
    named = {
        tensor.name.removeprefix('model.'): tensor.to_file(
            np.asarray(direction[path])[tuple(slice(0, n) for n in tensor.our_shape)]
        )
        for path, tensor in tensors.items()
    }
    named['norm.1.weight'] = named.pop('norm.weight')
    named['norm.0.weight'] = np.asarray(direction['translator']).T
    named['norm.0.bias'] = np.asarray(direction['translator_bias'])
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in named.items()}, path)


class Proxy:
    """An early exit of `teacher` that shares its weights, with a translator before the final norm.

    translator: {'translator': [D, D], 'translator_bias': [D]} for h W + b.
    """

    def __init__(self, teacher: Any, layers: int, translator: dict[str, np.ndarray]):
        config = copy.deepcopy(teacher.config)
        config.num_hidden_layers = layers
        self.body = type(teacher.model)(config).eval()
        self.body.embed_tokens = teacher.model.embed_tokens
        self.body.layers = torch.nn.ModuleList(teacher.model.layers[:layers])
        affine = torch.nn.Linear(config.hidden_size, config.hidden_size)
        with torch.no_grad():
            affine.weight.copy_(torch.tensor(translator['translator'].T.copy()))
            affine.bias.copy_(torch.tensor(translator['translator_bias']))
        self.body.norm = torch.nn.Sequential(affine, teacher.model.norm)
        self.head = teacher.lm_head

    def __call__(self, tokens_BL: torch.Tensor, mask_BS: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits [B, V] after the last of `tokens_BL`, which are the newest columns of `mask_BS`."""
        positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        out = self.body(
            input_ids=tokens_BL,
            attention_mask=mask_BS,
            position_ids=positions_BS[:, -tokens_BL.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        return self.head(out.last_hidden_state[:, -1])

    def moved(self, direction: dict[str, np.ndarray], step: float) -> Proxy:
        """A whole copy whose weights are `step` further along `direction`."""
        copied = copy.deepcopy(self)  # the head stays the embedding
        with torch.no_grad():
            for name, value in copied.body.named_parameters():
                value += step * torch.tensor(direction[name])
        return copied


class RuleProcessor(transformers.LogitsProcessor):
    """The rule on one batch. Returns log-probs at the rule's temperature: generate itself must sample at 1.

    times: seconds (perf_counter) at each call; two of them are one decode step apart.
    """

    def __init__(self, proxies: Sequence[Proxy], mask_BL: torch.Tensor, serving: Serving):
        self.proxies, self.mask_BS, self.serving = proxies, mask_BL, serving
        self.caches = [transformers.DynamicCache() for _ in proxies]
        self.protected = torch.tensor(serving.protected)
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        new_BL = input_ids
        if len(self.times) > 1:
            new_BL = input_ids[:, -1:]
            self.mask_BS = torch.cat([self.mask_BS, torch.ones_like(new_BL)], dim=-1)
        pairs = zip(self.proxies, self.caches, strict=True)
        logits = [proxy(new_BL, self.mask_BS, cache) for proxy, cache in pairs]
        if isinstance(self.serving.rule, ProductOfExperts):
            logits = [logits_BV / self.serving.temperature for logits_BV in logits]
        teacher_BV = torch.log_softmax(scores.float() / self.serving.temperature, dim=-1)
        return keep_mass(self.serving.rule.scores(teacher_BV, logits), teacher_BV, self.protected)


def keep_mass(scores_BV: torch.Tensor, teacher_BV: torch.Tensor, protected: torch.Tensor) -> torch.Tensor:
    """Log-probs of the scores; protected ids keep the teacher's, others share the rest."""
    scores_BV[:, protected] = -torch.inf
    rest_B1 = torch.log1p(-teacher_BV[:, protected].exp().sum(-1, keepdim=True))
    scores_BV += rest_B1 - scores_BV.logsumexp(-1, keepdim=True)
    scores_BV[:, protected] = teacher_BV[:, protected]
    return scores_BV


class Baseline:
    """The teacher and the proxies, loaded once."""

    def __init__(self, directory: pathlib.Path, layers: int, translator: str, serving: Serving):
        import safetensors.numpy

        self.teacher = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        proxy, rule = Proxy(self.teacher, layers, safetensors.numpy.load_file(translator)), serving.rule
        self.proxies, self.serving = [proxy], serving
        if isinstance(rule, Antidistillation):
            direction = safetensors.numpy.load_file(rule.direction)
            self.proxies = [proxy.moved(direction, step) for step in (rule.eps, -rule.eps)]

    def pad(self, prompts: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_BL, mask_BL), padded on the left."""
        length = max(map(len, prompts))
        tokens_BL = torch.full((len(prompts), length), self.serving.eos[0])
        mask_BL = torch.zeros((len(prompts), length), dtype=torch.long)
        for b, prompt in enumerate(prompts):
            tokens_BL[b, length - len(prompt) :] = torch.tensor(prompt)
            mask_BL[b, length - len(prompt) :] = 1
        return tokens_BL, mask_BL

    def generate(
        self, prompts: Sequence[Tokens], max_new: int, stop: bool = True
    ) -> tuple[np.ndarray, RuleProcessor]:
        """New tokens [B, T] of one batch, and its processor. stop: whether rows end at an eos."""
        tokens_BL, mask_BL = self.pad(prompts)
        processor = RuleProcessor(self.proxies, mask_BL, self.serving)
        with torch.inference_mode():
            out = self.teacher.generate(
                tokens_BL, attention_mask=mask_BL, logits_processor=[processor], max_new_tokens=max_new,
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=self.serving.eos[0],
                eos_token_id=list(self.serving.eos) if stop else None,
            )  # fmt: skip
        return out[:, tokens_BL.shape[1] :].numpy(), processor

    def useful_tokens(self, prompts: Sequence[Tokens], max_new: int, batch: int) -> int:
        """Decodes all prompts, `batch` at a time. Returns the new tokens, each row's first end included."""
        count = 0
        for i in range(0, len(prompts), batch):
            ended_BT = np.isin(self.generate(prompts[i : i + batch], max_new)[0], self.serving.eos)
            before_BT: np.ndarray = np.cumsum(ended_BT, axis=1) - ended_BT
            count += int(np.sum(before_BT == 0))
        return count

    def step_seconds(self, prompts: Sequence[Tokens], steps: int) -> list[float]:
        """Seconds of each of `steps` decode steps of one batch, prefills left out."""
        times = self.generate(prompts, steps + 2, stop=False)[1].times
        return np.diff(times[1:]).tolist()


class Apart:
    """A Baseline in a process of its own: torch's threads spin while they wait, and would slow the other side."""

    def __init__(self, *arguments: Any):
        self.pool = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context('spawn'), initializer=_start, initargs=arguments
        )

    def __call__(self, method: str, threads: int, *arguments: Any) -> Any:
        """Baseline.method(*arguments) with so many torch threads."""
        return self.pool.submit(_call, method, threads, *arguments).result()


def _start(*arguments: Any) -> None:
    global _baseline
    _baseline = Baseline(*arguments)
    _baseline.generate([[1, 2, 3]], 4)


def _call(method: str, threads: int, *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    return getattr(_baseline, method)(*arguments)


_baseline: Baseline
