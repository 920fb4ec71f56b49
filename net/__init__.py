"""Deep Compression (Han, Mao and Dally, ICLR 2016) for PyTorch: prune, share, Huffman-code."""
