"""How one class learns: its own denoising loss, and the mutual term that pulls it towards its peers."""
