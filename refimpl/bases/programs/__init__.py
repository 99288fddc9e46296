"""Programs under test: tasks with solutions of different cost (`tasks`), a sandbox that runs
untrusted code (`sandbox`), and a command that scores a file of samples (`__main__`)."""
