// How jemalloc, which the program is linked with, keeps memory. A training step allocates and frees the same large
// blocks again and again; glibc returns each to the system and pays for it in page faults (as long as the arithmetic,
// measured). Read by jemalloc before main.
#if CONCLAVE_JEMALLOC

extern "C" {
// Freed memory is kept for the next step (decay -1); large blocks share the arenas of small ones, whose freed memory is
// kept; few arenas, so that a block freed by one thread serves another.
extern const char* malloc_conf;
const char* malloc_conf = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:2";
}

#endif
