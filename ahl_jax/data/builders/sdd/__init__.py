"""KolektorSDD: surfaces of electrical commutators."""
