"""The paper's theory, solved exactly: games of random-feature networks on known densities."""
