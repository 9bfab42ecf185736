"""One self-contained page about runs: numbers, sentences, figures."""
