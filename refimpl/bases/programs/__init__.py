"""A small benchmark of programs: tasks with solutions of different cost (`tasks`), and a sandbox that runs untrusted code (`sandbox`)."""
