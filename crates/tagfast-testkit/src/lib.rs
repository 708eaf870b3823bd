//! Development only: child processes, waiting for a condition, fault tools, history checkers.
