"""How likely samples are under a saved result, by plain batched forwards of transformers.

Used by the checks of loss, learning and forgetting. Every path through a sample (a prompt with one
of its answers) is a row of its own, padded behind its end, in fp32; neither the engine's layout nor
its projection is used. Left out: gradients.

Shapes: R rows, T tokens a row, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hone.forest import is_target, leaves, path_to
from hone.models import LanguageModel
from hone.records import Sample
from hone.sampling import Artifact
from hone.signals import check_stop

LOGITS_AT_ONCE = 2**26  # 256 MB in fp32; a single longer row is computed alone
POSITIONS_AT_ONCE = 256  # of a row, whose softmax is taken together

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """What a model says of the trained tokens of one segment. logprobs: (P,) in nats. likeliest:
    (P,) bool, True where the token is the likeliest one.
    """

    logprobs: Reals
    likeliest: npt.NDArray[np.bool_]

    @property
    def count(self) -> int:
        """P, the trained tokens."""
        return len(self.logprobs)

    @property
    def logprob(self) -> float:
        """The log-probability of all of them together."""
        return float(self.logprobs.sum())


@dataclass(frozen=True)
class Table:
    """Of N samples, over the trained tokens of all their segments. losses: (N,) sums of -log p.
    right: (N,) tokens that are the likeliest. counts: (N,) tokens.
    """

    losses: Reals
    right: Reals
    counts: Reals

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.losses.sum() / self.counts.sum())

    @property
    def accuracy(self) -> float:
        """The share of tokens that are the likeliest."""
        return float(self.right.sum() / self.counts.sum())


def tabulate(artifact: Artifact, samples: Sequence[Sample]) -> Table:
    """The sums of each sample. Samples without a trained token have no place here."""
    rows = [
        (
            -sum(told.logprob for told in each),
            sum(float(told.likeliest.sum()) for told in each),
            sum(told.count for told in each),
        )
        for each in tell(artifact, samples)
    ]
    losses, right, counts = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Table(losses, right, counts)


def tell(
    artifact: Artifact,
    samples: Sequence[Sample],
    logits_at_once: int = LOGITS_AT_ONCE,
    positions_at_once: int = POSITIONS_AT_ONCE,
) -> list[tuple[Told, ...]]:
    """For each sample what the model says of each of its segments."""
    paths = [
        _Path(n, leaf, sample)
        for n, sample in enumerate(samples)
        for leaf in leaves(sample.segments)
    ]
    found: list[dict[int, Told]] = [{} for _ in samples]
    for group in _groups(artifact.model, paths, logits_at_once):
        check_stop()
        for path, told in zip(
            group, _tell_rows(artifact.model, group, positions_at_once), strict=True
        ):
            for segment, (begin, end) in path.borders.items():
                inside = (path.targets >= begin) & (path.targets < end)
                mine = Told(told.logprobs[inside], told.likeliest[inside])
                found[path.number].setdefault(segment, mine)
    return [
        tuple(each[n] for n in range(len(sample.segments)))
        for each, sample in zip(found, samples, strict=True)
    ]


class _Path:
    """The tokens from the root of a sample to a leaf. targets: places of the trained ones.
    borders: from and to where each of its segments lies.
    """

    def __init__(self, number: int, leaf: int, sample: Sample) -> None:
        self.number = number
        numbers = path_to(sample.segments, leaf)
        segments = [sample.segments[n] for n in numbers]
        ends = np.cumsum([0, *(len(segment.tokens) for segment in segments)])
        self.ids = np.concatenate([segment.tokens for segment in segments]).astype(np.int64)
        masks = [
            is_target(segment, begin > 0)
            for segment, begin in zip(segments, ends[:-1], strict=True)
        ]
        self.targets = np.flatnonzero(np.concatenate(masks))
        self.borders = {
            n: (int(begin), int(end))
            for n, begin, end in zip(numbers, ends[:-1], ends[1:], strict=True)
        }


def _groups(
    model: LanguageModel, paths: Iterable[_Path], logits_at_once: int
) -> Iterator[list[_Path]]:
    """Paths of like length, as many at once as their padded logits allow."""
    vocabulary = model.causal.config.get_text_config().vocab_size
    group: list[_Path] = []
    for path in sorted(paths, key=lambda each: len(each.ids)):
        elements = (len(group) + 1) * len(path.ids) * vocabulary
        if group and (elements > logits_at_once or model.layout == "alone"):
            yield group
            group = []
        group.append(path)
    if group:
        yield group


@torch.no_grad()
def _tell_rows(
    model: LanguageModel, group: Sequence[_Path], positions_at_once: int
) -> Iterator[Told]:
    longest = max(len(path.ids) for path in group)
    ids_RT = np.stack([np.pad(path.ids, (0, longest - len(path.ids))) for path in group])
    real_RT = np.stack([np.arange(longest) < len(path.ids) for path in group]).astype(np.int64)
    ids, real = (torch.from_numpy(each).to(model.device) for each in (ids_RT, real_RT))
    model.module.eval()
    logits_RTV = model.module(input_ids=ids, attention_mask=real, use_cache=False).logits
    for row, path in enumerate(group):
        logprobs, likeliest = [], []
        for begin in range(0, len(path.targets) or 1, positions_at_once):
            places = path.targets[begin : begin + positions_at_once]
            targets = torch.from_numpy(places).to(model.device)
            ids_P, logits_PV = ids[row, targets], logits_RTV[row, targets - 1].float()
            chosen_P = logits_PV.log_softmax(-1).gather(1, ids_P[:, None])[:, 0]
            logprobs.append(chosen_P.double().cpu().numpy())
            likeliest.append((logits_PV.argmax(-1) == ids_P).cpu().numpy())
        yield Told(np.concatenate(logprobs), np.concatenate(likeliest))
