"""All checks of a model, one after the other, in about the time that is given.

Called by `hone doctor`. The time decides how long the samples are: one step is measured first.
Every check is made on the whole model, however long that takes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig

from hone.data.chat import Renderer
from hone.data.formats import Example
from hone.device import (
    Precision,
    choose_precision,
    count_cores,
    make_deterministic,
    total_memory_bytes,
    use_threads,
)
from hone.doctor.adapter import adapter_checks, put_adapter
from hone.doctor.computing import base_logprobs, compute_step
from hone.doctor.findings import Check, Finding, left_out, run_checks
from hone.doctor.numerics import format_checks, layout_checks, repeat_checks
from hone.doctor.resume import resume_checks
from hone.doctor.samples import (
    NUM_SAMPLES,
    SHORTEST,
    built_in_examples,
    make_samples,
    make_trees,
    read_examples,
)
from hone.doctor.template import template_checks
from hone.hub import find_model
from hone.models import LanguageModel, join_model, load_tokenizer, read_weights
from hone.recipe.training import Full
from hone.records import Sample
from hone.stages.start import Start, build_model, check_start, own_base

FP32 = Precision(torch.float32, torch.float32, "what the checks are judged by")

# A step's tokens, forward and backward, that all checks together come to, rounded up.
STEPS_IN_ALL = 24
LONGEST = 256  # tokens of a sample, where the time allows


@dataclass(frozen=True)
class Examination:
    """What is examined and how. data: a file of the person's rows, built-in ones when left out.
    seconds: about how long it may take. told: hears what is being done.
    """

    source: str
    device: torch.device
    data: str | None = None
    precision: str = "auto"
    seed: int = 0
    seconds: float = 60.0
    told: Callable[[str], None] = lambda text: None

    def run(self) -> Iterator[Finding]:
        """Make all checks. Raises UserError for a model or data that cannot be read."""
        make_deterministic(self.device)
        use_threads(count_cores())
        with tempfile.TemporaryDirectory(prefix="hone-doctor-") as folder:
            yield from run_checks(self.checks(Path(folder)), self.told)

    def checks(self, folder: Path) -> Iterator[Check]:
        """All checks, each made before the next is asked for. folder: an empty one."""
        self.told("reading the model")
        start = Start.at(self.source)
        check_start(start)
        if start.adapter:
            start = Start.at(str(own_base(start, folder)))
        tokenizer = load_tokenizer(self.source)
        renderer = Renderer(tokenizer, "auto")
        examples = read_examples(self.data) if self.data else built_in_examples()
        yield from template_checks(renderer, examples, ends_of_generation(self.source))
        model = load_exact(start, folder, self.device, self.seed)
        samples = self.samples(model, examples, renderer)
        trees = make_trees(samples)
        yield from layout_checks(model, samples, trees)
        yield from repeat_checks(model, samples)
        exact = base_logprobs(model, samples)
        yield from adapter_checks(model, samples, folder / "adapter", self.seed)
        del model
        precision = choose_precision(self.precision, self.device, trains_weights=False)
        yield from self.format_checks(start, precision, samples, exact)
        yield from resume_checks(
            start,
            samples,
            folder / "resume",
            precision=precision,
            device=self.device,
            layout="auto",
            seed=self.seed,
        )

    def samples(
        self, model: LanguageModel, examples: Sequence[Example], renderer: Renderer
    ) -> list[Sample]:
        """Samples whose length lets all checks together take the given time."""
        rows = model.causal.get_input_embeddings().weight.shape[0]
        vocabulary = min(rows, len(renderer.tokenizer))
        short = make_samples(examples, renderer, SHORTEST, vocabulary, self.seed)
        compute_step(model, short)  # the first one compiles and warms up
        began = time.perf_counter()
        compute_step(model, short)
        taken = time.perf_counter() - began
        times_longer = self.seconds / (STEPS_IN_ALL * taken)
        limit = getattr(model.causal.config.get_text_config(), "max_position_embeddings", LONGEST)
        longest = min(LONGEST, limit, max(SHORTEST, int(SHORTEST * times_longer)))
        self.told(f"{NUM_SAMPLES} samples of up to {longest} tokens")
        return make_samples(examples, renderer, longest, vocabulary, self.seed)

    def format_checks(
        self,
        start: Start,
        precision: Precision,
        samples: Sequence[Sample],
        exact: torch.Tensor,
    ) -> Iterator[Check]:
        """The checks of the number format that a run would take, where it is not fp32."""
        if precision.compute == torch.float32:
            why = precision.reason if self.precision == "auto" else "asked for"
            reason = f"a run computes in fp32: {why}"
            yield left_out("number format", "bf16 against fp32, separate plain forwards", reason)
            return
        module = read_weights(start.base, precision.weights).to(self.device)
        model = join_model(module, precision)
        yield from format_checks(model, samples, exact, self.seed)


def load_exact(start: Start, folder: Path, device: torch.device, seed: int) -> LanguageModel:
    """The model in fp32, with all weights trained, or an adapter where that takes too much."""
    model = build_model(
        start,
        None,
        Full(),
        folder=folder,
        precision=FP32,
        device=device,
        layout="auto",
        seed=(seed,),
    )
    if not trains_all(model.module, total_memory_bytes(device)):
        put_adapter(model, seed)
    return model


def trains_all(module: nn.Module, memory_bytes: int) -> bool:
    """True where the fp32 weights and three gradients of them fit in a quarter of the memory."""
    count = sum(parameter.numel() for parameter in module.parameters())
    return 4 * 4 * count <= memory_bytes / 4


def ends_of_generation(source: str) -> list[int]:
    """The tokens that end `generate` of a model folder, [] where it does not say."""
    folder = find_model(source)
    if not (folder / "generation_config.json").exists():
        return []
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]
