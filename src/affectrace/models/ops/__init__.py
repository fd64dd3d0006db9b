"""Network operations: readable references, and fast versions with equal values and gradients."""
