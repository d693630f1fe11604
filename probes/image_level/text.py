"""Probes that compare images with texts by cosine: association, retrieval, zero-shot
classification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from cliptex_common.errors import UserError, suggest
from probes.base import Context, TaskResult
from probes.datasets.base import DatasetSpec
from probes.image_level.classification import score
from probes.image_level.encode import encode_split, encode_texts
from probes.image_level.metrics import association, retrieval
from probes.image_level.settings import RetrievalSettings


def run_association(context: Context) -> TaskResult:
    """``zero-shot`` association (WinoGAViL, Bitton et al. 2022): which of 5 to 12 images belong to
    a cue. As many images are selected as are right; an instance's score is the Jaccard index of the
    two sets. DataComp's figure is the mean over instances of 10 or 12 candidates. See
    ``probes.base.FeatureProbe``."""
    instances: dict[int, list[tuple[int, str, bool]]] = defaultdict(list)
    for index, sample in enumerate(context.data.samples["val"]):
        for number, cue, belongs in sample.target.questions:
            instances[number].append((index, cue, belongs))
    images = normalize(encode_split(context, "val"), dim=1)
    order = sorted(instances)
    prompts = [prompt(instances[number][0][1]) for number in order]
    texts = encode_texts(context, prompts)
    scores = []
    for number, text in zip(order, normalize(texts, dim=1), strict=True):
        indices, _, belongs = zip(*instances[number], strict=True)
        target = torch.tensor(belongs)
        selected = torch.zeros_like(target)
        selected[(images[list(indices)] @ text).topk(int(target.sum())).indices] = True
        union = int((selected | target).sum())
        scores.append(100 * int((selected & target).sum()) / max(union, 1))
    candidates = [sorted(index for index, *_ in instances[number]) for number in order]
    per_image = {
        "image": np.array([f"instance {number:05d}" for number in order]),
        # several cues may have the same candidates
        "unit": np.array([" ".join(map(str, indices)) for indices in candidates]),
        "jaccard": np.array(scores),
        "candidates": np.array([len(indices) for indices in candidates]),
    }
    metrics = association(tuple(per_image["image"]), per_image).values()
    return TaskResult(metrics, per_image, notes=[f"{len(order)} cues, {len(images)} images"])


def prompt(cue: str) -> str:
    """``A dog``, ``An owl``, in lower case as DataComp's."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in 'aeiou' else 'A'} {cue}"


CELLS = 2**24  # of the similarity matrix that are in memory at once (128 MiB)
# cosines nearer than this are equal: far above the rounding of float64, far below that of the
# embeddings
TIE = 1e-9


def run_retrieval(context: Context) -> TaskResult:
    """``retrieval``: captions by image and images by caption; recall at 1, 5 and 10.

    An image is right if any of its captions is among the first k (the field's reading for Flickr30k
    and COCO). A caption that describes several images is right for each of them, and each of them
    for it: no model could tell equal texts apart. Answers at equal cosine share their ranks (the
    expected rank over all orders), so that no order of equals decides: a backbone which gives every
    image the same embedding has the mean rank of chance, which is no hit.

    clip-benchmark (``zeroshot_retrieval.recall_at_k``) counts a caption as right for its own image
    only and leaves ties to ``torch.topk``; open_clip (``get_clip_metrics``) likewise, by
    ``argsort``. Without repeated captions and ties the figures are theirs (tested).

    See ``probes.base.FeatureProbe``.
    """
    settings: RetrievalSettings = context.settings
    samples = context.data.samples["val"]
    texts = [
        settings.template.replace("{}", caption)
        for sample in samples
        for caption in sample.target.texts
    ]
    owner = torch.tensor(
        [index for index, sample in enumerate(samples) for _ in sample.target.texts]
    )
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    images = encode_split(context, "val")
    captions = encode_texts(context, texts)
    text_numbers = torch.tensor([numbers[text] for text in texts])
    i2t, t2i = retrieval_ranks(images, captions, owner, text_numbers)
    per_image = {
        "image": np.array([sample.image for sample in samples]),
        "i2t_rank": i2t.numpy(),
        "t2i_rank": by_image(t2i, owner, len(samples)),
    }
    metrics = retrieval(tuple(per_image["image"]), per_image).values()
    notes = [f"{len(samples)} images, {len(texts)} captions ({len(numbers)} different)"]
    return TaskResult(metrics, per_image, notes=notes)


def retrieval_ranks(
    images: Tensor, captions: Tensor, owner: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank of the first right answer for every query, 0 for the first; see ``first_right``.

    Args:
        images: (N, D) and captions: (M, D) embeddings of any length; every image has at least one
            caption.
        owner: (M,) index of the image that each caption describes.
        text: (M,) number of each caption's text, the same for the same text.
    Returns:
        i2t (N,) and t2i (M,), float64.
    """
    # float64, so that the order of summation, which depends on ``CELLS``, stays far below what
    # counts as a tie
    images, captions = normalize(images.double(), dim=1), normalize(captions.double(), dim=1)
    index, counts = np.arange(len(captions)), np.ones(len(captions))
    # (images, captions): how many captions of the image have the same text
    right = csr_array((counts, (owner.numpy(), text.numpy()))) @ csr_array(
        (counts, (text.numpy(), index))
    )
    i2t = first_right(images, captions, right)
    return i2t, first_right(captions, images, right.T.tocsr())


def first_right(queries: Tensor, answers: Tensor, right: csr_array) -> Tensor:
    """(queries,) float64 expected rank of the first right answer over all orders of equals.

    With ``a`` wrong answers that are nearer than the nearest right one, and ``t`` wrong and ``r``
    right ones that are as near, it is ``a + t / (r + 1)``.
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(max(1, CELLS // len(answers))):
        similarity = queries[rows] @ answers.T
        is_right = torch.from_numpy(right[rows.numpy()].toarray() > 0)
        best = similarity.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        difference = similarity - best
        nearer = (difference > TIE).sum(dim=1)  # none of them is right
        tied = difference.abs() <= TIE
        wrong, equal = (tied & ~is_right).sum(dim=1), (tied & is_right).sum(dim=1)
        ranks.append(nearer + wrong.double() / (equal + 1))
    return torch.cat(ranks)


def by_image(ranks: Tensor, owner: Tensor, images: int) -> np.ndarray:
    """(M,) caption ranks → (images, captions of an image), filled with -1."""
    groups = ranks[owner.argsort(stable=True)].split(owner.bincount(minlength=images).tolist())
    return pad_sequence(list(groups), batch_first=True, padding_value=-1.0).double().numpy()


Template = Callable[[str], str]

# of TCL (Cha, Mun, Roh, CVPR 2023): seven of CLIP's 80, and two for several objects
TCL_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)


def run_zero_shot(context: Context) -> TaskResult:
    """``zero-shot`` classification: an image is of the class whose description is nearest (Radford
    et al. 2021, section 3.1). See ``probes.base.FeatureProbe``."""
    set_name, templates = templates_for(context.settings.templates, context.data.spec)
    weights = embed_names(context, class_names(context), templates)
    images = normalize(encode_split(context, "val"), dim=1)
    logits = torch.cat([part @ weights.T for part in images.split(4096)])
    prompts = f"prompts: {set_name} ({len(templates)} for each of {len(weights)} classes)"
    return score(context, logits, [prompts])


def templates_for(name: str, spec: DatasetSpec) -> tuple[str, Sequence[Template]]:
    """(name of the set, templates) for a dataset; ``auto`` depends on it."""
    # slow to import
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    sets: dict[str, Sequence[Template]] = {
        "openai": OPENAI_IMAGENET_TEMPLATES,
        "openai-7": SIMPLE_IMAGENET_TEMPLATES,
        "photo": ("a photo of a {}.".format,),
        "tcl": [text.format for text in TCL_TEMPLATES],
    }
    own = spec.extra.get("templates", ())
    if own:
        sets["dataset"] = [partial(text.replace, "{c}") for text in own]
    if name == "auto":
        default = "openai" if spec.name == "imagenet" else "photo"
        name = "dataset" if own else default
    if name not in sets:
        raise UserError(f"zero-shot: no templates {name!r}; {suggest(name, ['auto', *sets])}")
    return name, sets[name]


def class_names(context: Context) -> tuple[str, ...]:
    """Readable class names. Those of a dataset with its own prompts stay as they are."""
    names = context.data.classes
    if "templates" in context.data.spec.extra:
        return names
    return tuple(name.replace("_", " ") for name in names)


def embed_names(context: Context, names: Sequence[str], templates: Sequence[Template]) -> Tensor:
    """(names, D) unit vectors: the normalised mean of the unit embeddings of each name's prompts.

    Float32 on the CPU.
    """
    prompts = [template(name) for name in names for template in templates]
    by_name = normalize(encode_texts(context, prompts), dim=1).unflatten(0, (-1, len(templates)))
    return normalize(by_name.mean(dim=1), dim=1)
