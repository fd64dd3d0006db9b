"""Operations of the networks: a readable reference of each, and fast versions with the same values and gradients."""
