"""Read the texts of a run and draw the samples to calibrate on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prunekit.console import say
from prunekit.data.text.samples import Stream, Texts, TokenSample, calibration_samples
from prunekit.data.text.spec import TextSource
from prunekit.weights.streaming import Sample

CORPORA: tuple[Stream, ...] = ("open", "domain")


@dataclass(frozen=True)
class Calibration:
    """The texts of a run, the files that they came from, and the samples drawn from each stream with `seed`."""

    source: TextSource
    texts: Texts
    seed: int
    samples: Mapping[Stream, Sequence[TokenSample]]

    def sequences(self, stream: Stream) -> list[Sample]:
        """Return the samples of a stream in the form that runs through the blocks."""
        return [Sample(sample.ids, sample.counts) for sample in self.samples[stream]]


def draw_calibration(
    texts: Texts, source: TextSource, tokenizer: PreTrainedTokenizerBase, seed: int, max_tokens: int
) -> Calibration:
    """Report how many texts there are, and draw the samples of every stream.

    Raises:
        DataError: too little text for the samples asked for.
    """
    for name, documents in texts.documents.items():
        say(
            f"data       {name}: {len(documents.calibration)} documents to calibrate on, "
            f"{len(documents.evaluation)} to measure on; left out: {documents.duplicates} duplicates, "
            f"{documents.overlap} that are also measured on, {documents.empty} empty"
        )
    streams: tuple[Stream, ...] = (*CORPORA, "mixed")
    samples = {stream: calibration_samples(texts, stream, tokenizer, seed, max_tokens) for stream in streams}
    return Calibration(source, texts, seed, samples)
