"""Token vectors merged to fewer ones, for a model in this process that reads vectors (COMI, arXiv 2602.01719).

Coarse: n tokens in ceil(n / rate) equal groups, each stood for by its token nearest to the question; the groups are
sized anew by softmax(-gain / temperature) of those, so that what adds much is compressed little. Fine: the vector of a
group is the mean of its tokens' vectors, weighted by softmax(gain) within the group.

Deviations: the mapping of slots to a decoder is trained in the paper and not here. `temperature` .1, since with the
paper's 1 on differences of cosines the sizes hardly differ (spread .3: by 1.35 at most). With `aligned` the new borders
lie where the tokens are that the sizes were made for, and no group is empty; the paper lays the new sizes out from the
left, so that borders drift off the tokens that were scored, and drops groups of size 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from compressors._nearness import gains, softmax
from rag.errors import ConfigError
from rag.protocols import Embedder
from rag.types import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

    Floats = NDArray[np.float64]
    Cuts = NDArray[np.int64]

__all__ = ["merged_tokens", "token_states"]


def token_states(embedder: Embedder, text: str) -> tuple[Vectors, list[Span]]:
    """(n, d) unit vectors of the tokens of a text, each read with the text around it, and their places.

    ConfigError where the embedder gives no vectors of single tokens.
    """
    import numpy as np

    if not embedder.reads_within:
        raise ConfigError(
            "merging tokens needs vectors of single tokens, which this pipeline's embedder does not give: set "
            "embedder: minilm"
        )
    framed = f" {text} "  # no token at either end, so that none of them carries the special tokens
    places = [(start, end) for start, end in embedder.counter.offsets(framed) if end > start and end <= len(text) + 1]
    if not places:
        return np.zeros((0, embedder.dimension), dtype=np.float32), []
    vectors = embedder.embed_within([(framed, start, end) for start, end in places])
    return vectors, [Span(max(0, start - 1), end - 1) for start, end in places]


def merged_tokens(
    vectors: Vectors,
    spans: list[Span],
    question: Vectors,
    *,
    rate: int = 16,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 0.1,
    aligned: bool = True,
) -> tuple[Vectors, list[Span]]:
    """(groups, d) merged vectors, in order, and the stretch of text that each stands for.

    `vectors` (n, d) and `question` (d,) need not be of length 1; gains are cosines, merged vectors are means of what is
    given. `rate` tokens become one on the average. The rows are the vectors of tokens, `spans` their places.
    """
    import numpy as np

    if rate < 1 or temperature <= 0 or len(spans) != len(vectors):
        raise ConfigError(
            f"merged_tokens: rate must be >= 1, temperature > 0 and there must be a span for each vector, not {rate}, "
            f"{temperature} and {len(spans)} spans for {len(vectors)} vectors"
        )
    if not len(vectors):
        return vectors, []
    states = np.asarray(vectors, dtype=np.float64)
    unit, asked = _unit(states), _unit(np.asarray(question, dtype=np.float64)[None])[0]
    count = -(-len(unit) // rate)
    edges = np.linspace(0, len(unit), count + 1).round().astype(np.int64)
    nearest = [int(a + (unit[a:b] @ asked).argmax()) for a, b in pairwise(edges)]
    sizes = len(unit) * softmax(-gains(unit[nearest], asked, alpha, beta), temperature)
    cuts = _aligned(edges, sizes) if aligned else _from_the_left(sizes)
    slots, places = [], []
    for a, b in pairwise(cuts):
        slots.append(softmax(gains(unit[a:b], asked, alpha, beta), 1.0) @ states[a:b])
        places.append(Span(spans[a].start, spans[b - 1].end))
    return np.array(slots, dtype=np.float32), places


def _aligned(edges: Cuts, sizes: Floats) -> Cuts:
    """New borders: each new group holds an equal share of the sum of 1 / size over tokens; at least one token each."""
    import numpy as np

    density = np.repeat(1.0 / np.maximum(sizes, 1e-9), np.diff(edges))
    mass = np.concatenate([[0.0], np.cumsum(density)])
    goals = np.linspace(0, mass[-1], len(sizes) + 1)
    cuts = np.searchsorted(mass, goals - 1e-9 * mass[-1]).astype(np.int64)
    cuts[-1] = edges[-1]
    room = np.arange(len(cuts))
    cuts = np.maximum.accumulate(cuts - room) + room  # strictly rising
    made: Cuts = np.minimum(cuts, edges[-1] - room[::-1])
    return made


def _from_the_left(sizes: Floats) -> Cuts:
    """Borders of groups of these sizes, rounded by the largest remainder, empty ones dropped."""
    import numpy as np

    whole = np.floor(sizes).astype(np.int64)
    missing = round(float(sizes.sum())) - int(whole.sum())
    whole[np.argsort(-(sizes - whole), kind="stable")[:missing]] += 1
    made: Cuts = np.concatenate([[0], np.cumsum(whole[whole > 0])]).astype(np.int64)
    return made


def _unit(rows: Floats) -> Floats:
    import numpy as np

    made: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made
