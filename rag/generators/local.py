"""A causal language model in this process, through transformers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as TokenStream
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rag.answer import Generation, GenerationStats, Prompt
from rag.embedders._cpu import cpu_has_bf16
from rag.errors import ConfigError, RagError
from rag.generators._citations import verified
from rag.generators._completion import Completion
from rag.generators._donors import DONORS
from rag.generators._models import load_model, model_folder
from rag.generators._order import PieceOrder, check_order, ordered
from rag.generators._parts import Cut, Part, Plan, as_read, cut_of
from rag.generators._prompts import Coder, check_room, template_of
from rag.generators._repairs import Repair, build_repair, checked_repair
from rag.generators._reuse import as_rag_errors, attention_notes, check_reuse, is_whole, segments, stats_of, told
from rag.generators._sentences import context_sentences, documents_of
from rag.generators._sparse import Attention, check_attention, checked_attention
from rag.generators._weighing import losses_of, needs_of
from rag.generators._writing import Written, write
from rag.prompt import NOT_FOUND, build_prompt, piece_text
from rag.protocols import Corpus, Generator, TextModel, TokenCounter, TokenLoss, TokenNeed
from rag.tokens import TokenizerCounter, load_tokenizer
from rag.types import Chunk, CompressedContext, Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from rag.generators._chunk_kv import ChunkKv
    from rag.generators._decode import CountedDraft, Decoder, Reading
    from rag.generators._relay import Answers
    from rag.generators._sparsely import SparsePrompt, SparseTold


@dataclass(frozen=True, kw_only=True)
class LocalGenerator(Generator):
    """Writes the answer with a local language model and checks every sentence of it against the documents.

    `model` is "" (the bundled SmolLM2-135M-Instruct), a folder, or a hub id. `temperature` 0 is greedy and
    deterministic; above that it samples with `seed`. `dtype` "auto" is bfloat16 where the processor multiplies it
    in hardware, else float32. `threads` 0 leaves torch's own choice. A sentence is supported when `min_overlap` of
    its content words and all of its numbers stand in the pieces that it cites. `lead` is put into the model's mouth
    as the start of its answer and left out of the text: it keeps small models on the documents. The text ends before
    the first of `stop`. `piece_order` "stable" sorts pieces by document and place, so that questions over the same
    pieces share their prefix; "relevance" puts the best document first.

    `speculate` "lookup" guesses what follows from the prompt and the answer so far and checks several tokens in one
    pass (SuffixDecoding, arXiv 2411.04975): the same tokens, in fewer passes. That is exact in float32. In bfloat16
    such a pass rounds otherwise than one over each token, and a near tie may fall the other way: with SmolLM2 5 of 20
    answers of up to 40 tokens changed. "auto" guesses in float32 only.

    `reuse` says which keys and values are not computed again: "prefix" those of what earlier prompts of this object
    began with, at most `pool_bytes` of them in memory, which changes no answer; "chunk" those of whole chunks too,
    wherever they stand, kept in the index directory up to `kv_bytes`. That is approximate. `blocks` says how a chunk's
    are made: alone ("solo"), as their mean behind plain passages ("donor-mean"), or behind these and the chunk's
    neighbours in the index ("neighbour-mean": needs vectors; made again when the neighbours change, and deleted with
    any document behind which they were made). `repair` says what of them is computed again, by a name or a mapping with
    `use`; `kv_dtype` "int8" halves their size. `cut_pieces` says what becomes of chunks of which a part is left:
    "compute" reads the shortened text, "prune" takes the keys and values of the whole chunk, drops those of what was
    left out, and computes nothing of it again but what `repair` names. At most `ram_bytes` of them stay in memory too,
    until the index changes, and are not read again. `relay` keeps those of the last answers too, in `pool_bytes` of
    memory, for completions whose prompt holds the text of one, as where a flow has it judged: approximate, since they
    saw the documents that the answer was written from. `audit` measures after every answer how far it strays from full
    prefill, and costs one.

    `attention` says what of the prompt every token reads: all ("dense"), or what a selection of
    `rag.engine.attention` keeps, by a name or a mapping with `use`, its parameters and `executor`; "auto" takes what
    was measured for the model at the length of the prompt, and is dense where nothing was. Units are the pieces, their
    scores the prior. Sparse attention is approximate, and guesses nothing: `speculate` and `batch` are off then.

    `batch` "shared" writes the answers of several questions, where they are asked together and with reuse "prefix",
    in one pass over what their prompts begin with: the pieces, best in "stable" order. Each answer is that of its
    question alone, exactly in float32; in bfloat16 5 of 12 answers of SmolLM2 of up to 40 tokens changed. "auto" does
    so in float32 only.
    """

    model: str = ""
    max_new_tokens: int = 160
    temperature: float = 0.0
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    lead: str = "According to the documents,"
    stop: tuple[str, ...] = ()
    piece_order: PieceOrder = "relevance"
    speculate: Literal["auto", "none", "lookup"] = "auto"
    min_overlap: float = 0.5
    reuse: Literal["none", "prefix", "chunk"] = "prefix"
    blocks: Literal["solo", "donor-mean", "neighbour-mean"] = "donor-mean"
    repair: Repair = "first-variance"
    cut_pieces: Literal["compute", "prune"] = "compute"
    pool_bytes: int = 256 << 20
    kv_bytes: int = 2 << 30
    kv_dtype: Literal["auto", "int8"] = "auto"
    ram_bytes: int = 0
    relay: bool = False
    attention: Attention = "dense"
    batch: Literal["auto", "none", "shared"] = "auto"
    audit: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.threads < 0:
            raise ConfigError(
                "local: max_new_tokens must be >= 1, temperature and threads >= 0, not "
                f"{self.max_new_tokens}, {self.temperature} and {self.threads}"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"local: dtype is auto, float32 or bfloat16, not {self.dtype!r}")
        if not 0 <= self.min_overlap <= 1:
            raise ConfigError(f"local: min_overlap must lie in [0, 1], not {self.min_overlap}")
        check_order("local", self.piece_order)
        check_reuse(self)
        check_attention(self)

    @cached_property
    def counter(self) -> TokenCounter:
        name = self.model or "SmolLM2-135M-Instruct"
        return TokenizerCounter(self._counting, name=name, limit=None, additive=False)

    @property
    def text_model(self) -> TextModel:
        told = (lambda: self._answers.last) if self.relay else None
        return Completion(self._complete, self._losses, self._needs, told)

    def generate(
        self, context: CompressedContext, corpus: Corpus, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        if not context.pieces:
            if on_text:
                on_text(NOT_FOUND)
            return Generation(text=NOT_FOUND)
        _ = self._template, self._decoder  # loads the model: the clock starts after that
        started = time.perf_counter()
        plan = self._plan(context, corpus)
        sparse = self._sparse(plan)
        reading, draft = self._read(plan.parts, corpus, sparse), None if sparse else self._draft(plan.ids)
        written = self._write(reading, draft, on_text)
        if self.relay and not sparse:
            with self._decoder.lock, as_rag_errors("relay"):
                self._answers.keep(reading.cache, plan.ids, written.tokens)
        first, ended = written.first - started, time.perf_counter() - started
        read = sparse.told() if sparse else None
        stats = stats_of(reading, len(plan.ids), written, first, ended, draft, read)
        return self._made(plan, reading, written, self._deviations(stats, reading, plan.ids, written.tokens), read)

    @property
    def batches(self) -> bool:
        if self.batch == "none" or self.reuse != "prefix" or self.audit or self._attends != "dense":
            return False
        return (self.batch == "shared" or self._exact) and self._decoder.shares

    def generate_many(self, contexts: Sequence[CompressedContext], corpus: Corpus) -> list[Generation | RagError]:
        """What `generate` gives for each, in their order; in place of an answer the error that it raises. Where this
        generator `batches`, prompts that begin alike are written together."""
        made: dict[int, Generation | RagError] = {}
        if self.batches:
            made.update(self._together(contexts, corpus))
        for number, context in enumerate(contexts):
            if number not in made:
                try:
                    made[number] = self.generate(context, corpus)
                except RagError as error:
                    made[number] = error
        return [made[number] for number in range(len(contexts))]

    def _together(self, contexts: Sequence[CompressedContext], corpus: Corpus) -> Iterator[tuple[int, Generation]]:
        from rag.generators._batch import write_together

        plans: dict[int, Plan] = {}
        for number, context in enumerate(contexts):
            with suppress(RagError):  # which it raises again where it is asked alone
                if context.pieces:
                    plans[number] = self._plan(context, corpus)
        numbers = list(plans)
        for row in write_together(
            self._decoder, [plans[number].ids for number in numbers], most=self.max_new_tokens,
            temperature=self.temperature, seed=self.seed,
        ):  # fmt: skip
            plan = plans[numbers[row.number]]
            written = self._written(token for token in row.tokens)
            stats = stats_of(row.reading, len(plan.ids), written, row.ttft_seconds, row.total_seconds)
            made = self._made(plan, row.reading, written, stats)
            together = {"questions": row.together, "shared": row.shared}
            yield numbers[row.number], replace(made, notes={**made.notes, "batch": together})

    def _plan(self, context: CompressedContext, corpus: Corpus) -> Plan:
        before, after = self._template
        context = ordered(context, self.piece_order)
        documents = documents_of(context, corpus)
        after += self.lead
        prompt = build_prompt(context, documents, system=before, after=after)
        prompt, parts = self._parts(prompt, after, context, documents)
        return Plan(context, documents, prompt, parts)

    def _made(
        self, plan: Plan, reading: Reading, written: Written, stats: GenerationStats, read: SparseTold | None = None
    ) -> Generation:
        sentences = context_sentences(plan.context, plan.documents)
        made = verified(written.text, sentences, self.min_overlap, prompt=plan.prompt, stats=stats)
        rows = segments(plan.prompt, [len(part.ids) for part in plan.parts], reading, self._decoder.token_bytes, read)
        notes = told(stats, reading, rows)
        if self._attends != "dense":
            notes |= attention_notes(read, rows, self.speculate)
        return replace(made, notes={**made.notes, **notes})

    @property
    def _attends(self) -> str:
        return checked_attention(self.attention)[0]

    def _sparse(self, plan: Plan) -> SparsePrompt | None:
        """How the prompt is read, where that is not dense."""
        if self._attends == "dense" or (self._attends == "auto" and self._decoder.engine is None):
            return None
        from rag.generators._sparsely import sparse_prompt

        with as_rag_errors("attention"):
            return sparse_prompt(self.attention, self._decoder.required, plan)

    @property
    def _exact(self) -> bool:
        """Whether a pass over several tokens at once rounds as one over each, as far as it matters."""
        return str(self._loaded[0].dtype) == "torch.float32"

    def _draft(self, ids: Sequence[int]) -> CountedDraft | None:
        wanted = self.speculate == "lookup" or (self.speculate == "auto" and self._exact)
        return self._decoder.draft(ids) if wanted else None

    def _deviations(
        self, stats: GenerationStats, reading: Reading, ids: Sequence[int], new: Sequence[int]
    ) -> GenerationStats:
        from rag.generators._audit import audited, predicted

        if self.reuse == "chunk":
            stats = replace(stats, predicted_deviation=predicted(self._chunk_kv.policy, len(ids)))
        engine = self._decoder.engine
        return audited(stats, engine, reading, ids, new) if self.audit and engine is not None else stats

    def prefill_kv(self, chunks: Sequence[Chunk], corpus: Corpus) -> int:
        """Make and keep the keys and values of `chunks` ahead, those that are not kept yet; how many were made."""
        if self.reuse != "chunk":
            raise ConfigError(f"local: keys and values of chunks are kept with reuse: chunk, not with {self.reuse!r}")
        start, parts = self._template_ids(self._template[0]), []
        for chunk in chunks:
            parts.append(Part(tuple(self._plain_ids(piece_text(chunk.text))), chunk.doc_id, chunk_id=chunk.id))
        with self._decoder.lock, as_rag_errors():
            return self._chunk_kv.prepare(start, parts, corpus.directory, corpus)

    def _prompt_parts(self, prompt: Prompt, after: str) -> list[list[int]]:
        parts = self._coder.parts(prompt, after)
        cure = "Lower the selector's budget or max_new_tokens"
        check_room(self._loaded[0].config, sum(map(len, parts)), self.max_new_tokens, cure)
        return parts

    def _parts(
        self, prompt: Prompt, after: str, context: CompressedContext, documents: Mapping[str, Document]
    ) -> tuple[Prompt, list[Part]]:
        """`prompt` as it is read, and its parts: the start, a head and a text for every piece, the question."""
        cuts: dict[int, Cut] = {}
        if self.reuse == "chunk" and self.cut_pieces == "prune":
            with as_rag_errors():
                most = self._chunk_kv.longest
            for number, piece in enumerate(context.pieces):
                if cut := cut_of(piece, documents[piece.doc_id], self._counting, most):
                    cuts[number] = cut
        prompt = as_read(prompt, cuts)
        parts = [Part(tuple(ids)) for ids in self._prompt_parts(prompt, after)]
        for number, piece in enumerate(context.pieces):
            at = 2 + 2 * number
            if number in cuts:
                parts[at] = cuts[number].part(piece.doc_id, piece.chunk_id)
            elif is_whole(piece):
                parts[at] = replace(parts[at], owner=piece.doc_id, chunk_id=piece.chunk_id)
        return prompt, parts

    def _read(self, parts: Sequence[Part], corpus: Corpus, sparse: SparsePrompt | None = None) -> Reading:
        """`parts` are those of `_parts`."""
        if self.reuse != "chunk":
            with as_rag_errors("attention") if sparse else nullcontext():
                return self._decoder.read([token for part in parts for token in part.ids], self.max_new_tokens, sparse)
        with self._decoder.lock, as_rag_errors():
            return self._chunk_kv.read(parts, corpus, self.max_new_tokens, sparse)

    def _template_ids(self, text: str) -> list[int]:
        return self._coder.template(text)

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._counting.encode(text, add_special_tokens=False).ids)

    def _complete(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """The text so far, token by token, written greedily after `prompt` alone."""
        new: list[int] = []
        for token in self._decoder.tokens(self._asked(prompt, max_tokens), max_tokens, temperature=0.0, seed=0):
            new.append(token)
            yield self._text(new)

    def _asked(self, prompt: str, room: int) -> Reading:
        if self.relay:
            with self._decoder.lock, as_rag_errors("relay"):
                if reading := self._answers.read(prompt, room):
                    return reading
        ids = self._coder.asked(prompt)
        check_room(self._loaded[0].config, len(ids), room, "Give it a shorter text")
        return self._decoder.read(ids, room)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._loaded[1].decode(ids, skip_special_tokens=True))

    def _coded_after(self, after: str) -> list[tuple[int, tuple[int, int] | None]]:
        start, end = self._template
        return self._coder.after(after, start, end + self.lead)

    def _needs(self, text: str, after: str, reading: str) -> list[TokenNeed]:
        coded, before = self._counting.encode(text, add_special_tokens=False), self._coded_after(after)
        return needs_of(*self._loaded, coded, before, text=text, after=after, reading=reading)

    def _losses(self, text: str, after: str) -> list[TokenLoss]:
        coded = self._counting.encode(text, add_special_tokens=False)
        return losses_of(*self._loaded, coded, self._coded_after(after))

    def _write(self, reading: Reading, draft: CountedDraft | None, on_text: Callable[[str], None] | None) -> Written:
        tokens = self._decoder.tokens(
            reading, self.max_new_tokens, temperature=self.temperature, seed=self.seed, draft=draft
        )
        return self._written(tokens, on_text)

    def _written(self, tokens: TokenStream[int], on_text: Callable[[str], None] | None = None) -> Written:
        return write(tokens, self._text, stop=self.stop, on_text=on_text)

    @cached_property
    def _template(self) -> tuple[str, str]:
        return template_of(self._loaded[1])

    @cached_property
    def _coder(self) -> Coder:
        return Coder(self._loaded[1], self._counting)

    @cached_property
    def _folder(self) -> str:
        return model_folder(self.model)

    @cached_property
    def _counting(self) -> Tokenizer:
        """The tokenizer for texts, to which special tokens are plain text; a copy, where the folder lacks its file."""
        file = Path(self._folder) / "tokenizer.json"
        plain = load_tokenizer(file) if file.is_file() else copy.deepcopy(self._loaded[1].backend_tokenizer)
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "bfloat16" if torch.cuda.is_available() or cpu_has_bf16() else "float32"
        return load_model(self._folder, dtype=dtype)

    @cached_property
    def _decoder(self) -> Decoder:
        from rag.generators._decode import Decoder, stop_ids

        model, tokenizer = self._loaded
        return Decoder(model, stops=stop_ids(model, tokenizer), reuse=self.reuse, pool_bytes=self.pool_bytes)

    @cached_property
    def _answers(self) -> Answers:
        from rag.generators._relay import Answers

        return Answers(engine=self._decoder.required, coder=self._coder, max_bytes=self.pool_bytes)

    @cached_property
    def _chunk_kv(self) -> ChunkKv:
        from rag.generators._chunk_kv import ChunkKv
        from rag.generators._neighbours import Neighbours

        name, _ = checked_repair(self.repair)
        return ChunkKv(
            engine=self._decoder.required,
            policy=build_repair(self.repair, self._decoder.required.fingerprint, self.blocks),
            label=name,
            kind="observed" if name == "cache-craft" else self.blocks,
            donors=[self._plain_ids(text) for text in DONORS],
            neighbours=Neighbours(self._plain_ids),
            max_bytes=self.kv_bytes,
            ram_bytes=self.ram_bytes,
            int8=self.kv_dtype == "int8",
        )
