"""What scripts/bench measures.

report      figures, aims, and the table for people
programs    running commands, mounts, and what the system says of processes
setting     one run: where its mail and its store are, how often to measure
reading     import, and mutt, listing and open beside ext4 and others; one_worker is what one of these runs
memory      a view of a million messages
watched     views that are listed and watched, and the events their watchers hear
notice      how soon a change made anywhere is heard and seen
crowds      a flag change and other requests while mail is imported, or a command changes most messages
many_views  what each loaded view adds to a flag change; what an idle mount costs
"""
