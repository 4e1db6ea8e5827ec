"""How parts relate to each other: samples of a batch, channels or layers of a net, matched between nets."""
