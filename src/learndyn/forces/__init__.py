"""Why an update moved what it moved: A, K and G. Needs torch."""

from learndyn.errors import needs


needs("torch", "transformers")
