# mypy: ignore-errors
# Kernels are compiled by Triton from their source: they are not Python that a type checker could follow.
"""Triton kernels: attention over listed tiles of slots, and one token over listed pages, split along the slots.

Both keep a running maximum and sum of each row's softmax while the keys pass by (FlashAttention-2, arXiv 2307.08691;
the online softmax of arXiv 1805.02867), in float32 and base 2. `seen_by` marks what a listed tile does not give to all.
The split of one token's slots, whose parts are merged by their maxima and sums, is that of Flash-Decoding
(pytorch.org/blog/flash-decoding); that the query heads of a kv head are rows of one product, so that a page is loaded
once for all of them, is usual for grouped queries (arXiv 2305.13245).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend_pages", "attend_tiles", "merge_parts"]


@triton.jit
def _absorb(
    query, keys, values, seen, scale, best, total, out, masked: tl.constexpr, exact: tl.constexpr, wide: tl.constexpr
):  # fmt: skip
    """One tile more: query (rows, d), keys (d, slots), values (slots, d); `scale` has log2(e) in it. Where `masked`,
    `seen` (1 or rows, slots) says who reads what; a row may have read nothing so far. `wide`: the numbers
    are multiplied as float32, for the interpreter, which takes bfloat16 for integers."""
    if wide:
        query = query.to(tl.float32)
        keys = keys.to(tl.float32)
    scores = tl.dot(query, keys, input_precision=exact) * scale
    if masked:
        scores = tl.where(seen, scores, float("-inf"))
    larger = tl.maximum(best, tl.max(scores, 1))
    base = larger
    if masked:
        base = tl.where(larger == float("-inf"), 0.0, larger)
    weights = tl.exp2(scores - base[:, None])
    faded = tl.exp2(best - base)
    total = total * faded + tl.sum(weights, 1)
    weights = weights.to(values.dtype)
    if wide:
        weights = weights.to(tl.float32)
        values = values.to(tl.float32)
    out = tl.dot(weights, values, out * faded[:, None], input_precision=exact)
    return larger, total, out


@triton.jit
def _nothing(rows: tl.constexpr, v_room: tl.constexpr):
    """The largest score, the sum and the output of rows that have read nothing yet."""
    best = tl.full((rows,), float("-inf"), tl.float32)
    return best, tl.zeros((rows,), tl.float32), tl.zeros((rows, v_room), tl.float32)


@triton.jit
def _states(k_at, v_at, k_s, v_s, slot, there, d, dv, width: tl.constexpr, v_width: tl.constexpr, masked: tl.constexpr):
    """Keys (d, slots) and values (slots, d); where `masked`, zeros for the slots that are not `there`."""
    k_in = (d < width)[:, None]
    v_in = (dv < v_width)[None, :]
    if masked:
        k_in = k_in & there[None, :]
        v_in = v_in & there[:, None]
    keys = tl.load(k_at + slot[None, :] * k_s + d[:, None], mask=k_in, other=0.0)
    values = tl.load(v_at + slot[:, None] * v_s + dv[None, :], mask=v_in, other=0.0)
    return keys, values


@triton.jit
def attend_tiles(
    q, k, v, made, places, segments, local, tiles, whole, listed, of_slot, opened,
    q_b, q_h, q_r, k_b, k_h, k_s, v_b, v_h, v_s, m_b, m_h, m_r, t_b, t_h, t_i, c_b, c_h, o_b, o_h, o_i,
    kv_heads, count, scale,
    group: tl.constexpr, width: tl.constexpr, room: tl.constexpr, v_width: tl.constexpr, v_room: tl.constexpr,
    rows: tl.constexpr, slots: tl.constexpr, exact: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Several rows of one segment, and the query heads of one kv head: see below."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)  # the rows that read most come first
    pair = tl.program_id(1)
    b = (pair // kv_heads).to(tl.int64)
    h = (pair % kv_heads).to(tl.int64)
    start = tl.load(segments + number)
    stop = tl.load(segments + count + number)
    block = tl.load(segments + 2 * count + number)
    lane = tl.arange(0, rows)
    row = start + lane // group
    used = row < stop
    row = tl.minimum(row, stop - 1)
    head = h * group + lane % group
    d = tl.arange(0, room)
    dv = tl.arange(0, v_room)
    ours = q + b * q_b + head * q_h + row.to(tl.int64) * q_r
    query = tl.load(ours[:, None] + d[None, :], mask=(d < width)[None, :], other=0.0)
    best, total, out = _nothing(rows, v_room)
    k_at = k + b * k_b + h * k_h
    v_at = v + b * v_b + h * v_h
    edge = tl.load(local + block)
    first, last, place = tl.load(places + start), tl.load(places + stop - 1), tl.load(places + row)
    column = tl.arange(0, slots)
    told = tiles + b * t_b + h * t_h + block.to(tl.int64) * t_i
    counts = b * c_b + h * c_h + block
    whole_tiles, all_tiles = tl.load(whole + counts), tl.load(listed + counts)
    for at in range(0, whole_tiles):
        slot = tl.load(told + at) * slots + column
        keys, values = _states(k_at, v_at, k_s, v_s, slot, slot, d, dv, width, v_width, False)
        best, total, out = _absorb(query, keys, values, used, scale, best, total, out, False, exact, wide)
    choice = opened + b * o_b + h * o_h + block.to(tl.int64) * o_i
    for at in range(whole_tiles, all_tiles):
        slot = tl.load(told + at) * slots + column
        past = slot < edge
        unit = tl.load(of_slot + slot, mask=past, other=0)
        seen = past & (tl.load(choice + unit, mask=past, other=0) != 0)
        keys, values = _states(k_at, v_at, k_s, v_s, slot, past, d, dv, width, v_width, True)
        best, total, out = _absorb(query, keys, values, seen[None, :], scale, best, total, out, True, exact, wide)
    border = edge + (first + 1 - edge) // slots * slots  # up to there every row reads all
    for at in range(edge, border, slots):
        slot = at + column
        keys, values = _states(k_at, v_at, k_s, v_s, slot, slot, d, dv, width, v_width, False)
        best, total, out = _absorb(query, keys, values, used, scale, best, total, out, False, exact, wide)
    for at in range(border, last + 1, slots):
        slot = at + column
        near = slot <= last
        keys, values = _states(k_at, v_at, k_s, v_s, slot, near, d, dv, width, v_width, True)
        seen = slot[None, :] <= place[:, None]
        best, total, out = _absorb(query, keys, values, seen, scale, best, total, out, True, exact, wide)
    there = made + b * m_b + head * m_h + row.to(tl.int64) * m_r
    out = (out / total[:, None]).to(made.dtype.element_ty)
    tl.store(there[:, None] + dv[None, :], out, mask=used[:, None] & (dv < v_width)[None, :])


"""One program: the rows of one segment and the query heads of one kv head, `rows` in all (row // group, head).

`segments` (3, count): first row, row behind the last, and row block. Of a row block, `tiles` lists the numbers of
the tiles of `slots` slots that are read before `local`: the first `whole` of them by all, the rest of the `listed`
in part. Strides: of q, k, v and what is made by batch, head and row or slot; of tiles and opened by batch, kv head
and row block; c_b and c_h of both counts.
"""


@triton.jit
def attend_pages(
    q, k, v, parts, tops, sums, index, counts,
    q_b, q_h, k_b, k_h, k_s, v_b, v_h, v_s, i_b, i_h, c_b, c_h,
    kv_heads, pages, rest, stop, scale,
    counted: tl.constexpr, size: tl.constexpr, group: tl.constexpr, rows: tl.constexpr,
    width: tl.constexpr, room: tl.constexpr, v_width: tl.constexpr, v_room: tl.constexpr,
    slots: tl.constexpr, exact: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One token. One program: the query heads of one kv head (padded to `rows`), and one part of what they read.

    That is the slots of the pages in `index` (batch, kv heads, pages), of `size` slots each, of which only the first
    `counts` (batch, kv heads) count where `counted`, and then the slots [rest, stop). Made are, by kv head, part and
    query head: `parts` (.., v_width) not yet divided by `sums`, and `tops`, the largest score times log2(e).
    """
    split = tl.program_id(0)
    pair = tl.program_id(1)
    b = (pair // kv_heads).to(tl.int64)
    h = (pair % kv_heads).to(tl.int64)
    far = pages
    if counted:
        far = tl.load(counts + b * c_b + h * c_h)
    far = far * size
    every = far + stop - rest
    share = tl.cdiv(tl.cdiv(every, tl.num_programs(0)), slots) * slots
    begin = split * share
    end = tl.minimum(every, begin + share)
    lane = tl.arange(0, rows)
    d = tl.arange(0, room)
    dv = tl.arange(0, v_room)
    ours = q + b * q_b + (h * group + lane) * q_h
    query = tl.load(ours[:, None] + d[None, :], mask=(lane < group)[:, None] & (d < width)[None, :], other=0.0)
    best, total, out = _nothing(rows, v_room)
    k_at = k + b * k_b + h * k_h
    v_at = v + b * v_b + h * v_h
    told = index + b * i_b + h * i_h
    column = tl.arange(0, slots)
    for at in range(begin, end, slots):
        one = at + column
        inside = one < end
        paged = inside & (one < far)
        page = tl.load(told + one // size, mask=paged, other=0).to(tl.int32)
        slot = tl.where(paged, page * size + one % size, rest + one - far)
        keys, values = _states(k_at, v_at, k_s, v_s, slot, inside, d, dv, width, v_width, True)
        best, total, out = _absorb(query, keys, values, inside[None, :], scale, best, total, out, True, exact, wide)
    there = (pair.to(tl.int64) * tl.num_programs(0) + split) * group + lane
    tl.store(tops + there, best, mask=lane < group)
    tl.store(sums + there, total, mask=lane < group)
    tl.store(
        parts + there[:, None] * v_width + dv[None, :], out, mask=(lane < group)[:, None] & (dv < v_width)[None, :]
    )


@triton.jit
def merge_parts(
    parts, tops, sums, made, m_b, m_h, kv_heads, splits,
    group: tl.constexpr, v_width: tl.constexpr, v_room: tl.constexpr, many: tl.constexpr,
):  # fmt: skip
    """One program: one query head. Its parts, `many` or fewer, weighted by what each has of the sum of the softmax;
    a part that read nothing has a top of -inf."""
    pair = tl.program_id(0)
    lane = tl.program_id(1)
    at = tl.arange(0, many)
    dv = tl.arange(0, v_room)
    used = at < splits
    there = (pair.to(tl.int64) * splits + at) * group + lane
    top = tl.load(tops + there, mask=used, other=float("-inf"))
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(sums + there, mask=used, other=0.0), 0)
    own = tl.load(
        parts + there[:, None] * v_width + dv[None, :], mask=used[:, None] & (dv < v_width)[None, :], other=0.0
    )
    out = tl.sum(own * weight[:, None], 0) / total
    b = (pair // kv_heads).to(tl.int64)
    h = (pair % kv_heads) * group + lane
    tl.store(made + b * m_b + h.to(tl.int64) * m_h + dv, out.to(made.dtype.element_ty), mask=dv < v_width)
