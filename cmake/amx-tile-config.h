// GCC's own _tile_loadconfig() (12 has it so) says that it reads 8 bytes of the 64 that it reads: the shapes of the tiles are then
// taken for stores that nobody needs, and the first tile that is loaded is an illegal instruction. Included before ggml's CPU backend.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))

#endif
