// How jemalloc, which the program is linked with, keeps memory. Tensors' large blocks have a pool of their own
// (memory/block_pool.h); what is left, a training step allocates and frees again and again as well. Read by jemalloc
// before main.
#if CONCLAVE_JEMALLOC

extern "C" {
// Freed memory is kept for the next step (decay -1); large blocks share the arenas of small ones, whose freed memory is
// kept; few arenas, so that a block freed by one thread serves another.
extern const char* malloc_conf;
const char* malloc_conf = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:2";
}

#endif
