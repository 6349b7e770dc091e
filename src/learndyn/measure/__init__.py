"""Log-probabilities of every token of every probe. Needs torch."""

from learndyn.errors import needs


needs("torch", "transformers")
