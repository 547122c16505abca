"""Rank 3: text from language models: sampling, beams, speculation, streaming; each one program.

decoder     a model as two pure functions, start and step    sliding   texts longer than it
sample      greedy or drawn, with `warp`s of the law         stream    pieces of text, at once
beam        the likeliest texts                              speculative, prompt_lookup   faster
"""

from nnkit.generate.beam import Beams, beam, gnmt, power
from nnkit.generate.decoders import Decoder, decoder, sliding
from nnkit.generate.sampling import Sampled, sample
from nnkit.generate.speculative import Speculated, acceptance, prompt_lookup, residual, speculative
from nnkit.generate.streaming import stream
from nnkit.generate.warps import chain, min_p, repetition_penalty, temperature, top_k, top_p

__all__ = [
    "Beams",
    "Decoder",
    "Sampled",
    "Speculated",
    "acceptance",
    "beam",
    "chain",
    "decoder",
    "gnmt",
    "min_p",
    "power",
    "prompt_lookup",
    "repetition_penalty",
    "residual",
    "sample",
    "sliding",
    "speculative",
    "stream",
    "temperature",
    "top_k",
    "top_p",
]
