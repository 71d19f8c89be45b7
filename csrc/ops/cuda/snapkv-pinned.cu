// Host memory that was allocated elsewhere, page-locked. cudaMallocHost() would hold up the device while it gets pages, which
// takes a second for each GiB; here they are there already.
#include "snapkv-cuda.h"
#include "snapkv-vendor.cuh"

#include <cstddef>
#include <cstring>

static bool pin(void * data, size_t size) {
    const bool done = cudaHostRegister(data, size, cudaHostRegisterPortable) == cudaSuccess;
    (void) cudaGetLastError(); // not the next launch's
    return done;
}

static void unpin(void * data) {
    (void) cudaHostUnregister(data);
    (void) cudaGetLastError();
}

void * snapkv_cuda_get_proc_address(const char * name) {
    if (strcmp(name, "snapkv_pin") == 0) {
        return (void *) pin;
    }
    if (strcmp(name, "snapkv_unpin") == 0) {
        return (void *) unpin;
    }
    return nullptr;
}
