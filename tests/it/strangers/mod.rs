//! What people who know nothing of the inside do to a cluster, or its disks and networks to it. Each test is one finding of
//! a review from outside; `tests/BUGS.md` lists them.

mod sessions;
//! What people who do not know the house found out about it, and what it makes of that now. See `tests/BUGS.md`.

mod activation;
