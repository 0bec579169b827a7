"""Hand-written kernels and their plans, for testing the runtime without the compiler."""

from __future__ import annotations

from typing import Any

from attngen.runtime.plan import (
    Field,
    GridDim,
    KernelPlan,
    ParamArg,
    Plan,
    TensorArg,
)

C_TYPES = {"pointer": "void*", "int64": "int64_t", "int32": "int32_t", "float32": "float",
           "float64": "double"}

PARAMS = (ParamArg("seqlen_q", "int32"), ParamArg("seqlen_k", "int32"),
          ParamArg("q_offset", "int32", True), ParamArg("kv_offset", "int32", True),
          ParamArg("kv_len", "int32", True))

NAIVE = """
#include <cmath>
#include <cstdint>
{struct}
static int at(const void* p, int64_t b, int value) {{ return p ? ((const int32_t*)p)[b] : value; }}
extern "C" void {name}(const Params* p, int threads) {{
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t b = 0; b < p->batch; ++b) for (int64_t h = 0; h < {heads}; ++h)
  for (int64_t i = 0; i < p->seqlen_q; ++i) {{
    const int64_t g = h * {groups} / {heads};
    const {real}* q = ({real}*)p->q + b * p->q_stride_b + h * p->q_stride_h + i * p->q_stride_i;
    const {real}* k = ({real}*)p->k + b * p->k_stride_b + g * p->k_stride_g;
    const {real}* v = ({real}*)p->v + b * p->v_stride_b + g * p->v_stride_g;
    {real}* o = ({real}*)p->o + b * p->o_stride_b + h * p->o_stride_h + i * p->o_stride_i;
    const int at_q = at(p->q_offset_ptr, b, p->q_offset), len = at(p->kv_len_ptr, b, p->kv_len),
              at_k = at(p->kv_offset_ptr, b, p->kv_offset);
    double sum = 0, acc[{dim_v}] = {{0}};
    for (int64_t j = 0; j < len && at_k + j <= at_q + i; ++j) {{
      double s = 0;
      for (int d = 0; d < {dim}; ++d) s += (double)q[d] * k[j * p->k_stride_j + d];
      const double e = std::exp(s / std::sqrt((double){dim}));
      sum += e;
      for (int d = 0; d < {dim_v}; ++d) acc[d] += e * v[j * p->v_stride_j + d];
    }}
    for (int d = 0; d < {dim_v}; ++d) o[d] = sum ? acc[d] / sum : 0;
    (({real}*)p->lse)[b * p->lse_stride_b + h * p->lse_stride_h + i] = std::log(sum);
  }}
}}
"""


def c_struct(fields: tuple[Field, ...]) -> str:
    members = " ".join(f"{C_TYPES[f.ctype]} {f.name};" for f in fields)
    return f"struct Params {{ {members} }};"


def tensors(dtype: str = "float32") -> tuple[TensorArg, ...]:
    return (TensorArg("q", ("b", "h", "i", "d"), dtype, "input"),
            TensorArg("k", ("b", "g", "j", "d"), dtype, "input"),
            TensorArg("v", ("b", "g", "j", "e"), dtype, "input"),
            TensorArg("o", ("b", "h", "i", "e"), dtype, "output"),
            TensorArg("lse", ("b", "h", "i"), dtype, "output"))


def fields_of(args: tuple[TensorArg, ...], params: tuple[ParamArg, ...]) -> tuple[Field, ...]:
    wide = [f for t in args for f in (
        Field(t.name, "pointer"), *(Field(f"{t.name}_stride_{a}", "int64") for a in t.axes[:-1]))]
    wide += [Field(f"{p.name}_ptr", "pointer") for p in params if p.per_batch]
    return (*wide, *(Field(p.name, p.dtype) for p in params), Field("batch", "int32"))


def causal(heads: int = 4, groups: int = 2, dim: int = 16, dim_v: int = 8,
           dtype: str = "float32", name: str = "naive_causal", **variant: Any) -> Plan:
    """Causal attention as three loops of C++."""
    args = tensors(dtype)
    fields = fields_of(args, PARAMS)
    text = NAIVE.format(struct=c_struct(fields), name=name, heads=heads, groups=groups, dim=dim,
                        dim_v=dim_v, real={"float32": "float", "float64": "double"}[dtype])
    kernel = KernelPlan(
        name=name, kind="forward", language="cpp", target="cpu", text=text, fields=fields,
        tensors=tuple(t.name for t in args), params=PARAMS, meta={},
        grid=(GridDim("seqlen_q", 16), GridDim(heads), GridDim("batch")))
    return Plan(spec_json=None, target="cpu", kind="forward", tensors=args, kernels=(kernel,),
                sizes={"heads": heads, "groups": groups, "head_dim": dim, "head_dim_v": dim_v},
                variant=dict(variant))


COPY_CUDA = """
typedef int int32_t; typedef long long int64_t;
{struct}
extern "C" __global__ void __launch_bounds__(128) {name}(Params p) {{
  const int64_t i = blockIdx.x * 128ll + threadIdx.x;
  if (i < p.seqlen_q) ((float*)p.o)[i * p.o_stride_i] = ((float*)p.q)[i * p.q_stride_i];
}}
"""


def copy_cuda(target: str = "sm_80", name: str = "copy_rows") -> Plan:
    """A CUDA kernel that copies the first element of each row."""
    args = tensors()
    fields = fields_of(args, PARAMS)
    kernel = KernelPlan(
        name=name, kind="forward", language="cuda", target=target,
        text=COPY_CUDA.format(struct=c_struct(fields), name=name), fields=fields,
        tensors=tuple(t.name for t in args), params=PARAMS, meta={}, threads=128,
        shared_bytes=65536,
        grid=(GridDim("seqlen_q", 128), GridDim(1), GridDim(1)))
    return Plan(spec_json=None, target=target, kind="forward", tensors=args, kernels=(kernel,),
                sizes={}, variant={})


def no_backward(kind: Any, wanted: frozenset[str]) -> Any:
    """Where nothing asks for gradients."""
    raise AssertionError("no backward here")


def no_append(name: str, kind: Any) -> Any:
    """No kernel that fills a cache."""
    raise AssertionError("nothing is appended here")


OTHERS = (no_backward, no_append)  # than forward, where nothing asks for them
