"""The search for the next pick of NovelSelect, by side of the density and by device."""
