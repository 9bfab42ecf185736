"""Federated training of generative models that is fair to rare classes.

Each class is one player with private samples and a score network of its own; a player adds to its denoising
loss a mutual-learning term that pulls its network, at high noise, toward its peers'. Method: *Principled
Long-Tailed Generative Modeling via Diffusion Models* (Das, Fu, Hashemi, Gupta, NeurIPS 2025).
"""
