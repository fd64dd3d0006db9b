"""Operations of networks: a readable reference of each, and faster equivalents."""
