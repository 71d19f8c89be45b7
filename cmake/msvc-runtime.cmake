# Microsoft's libraries for C++ and OpenMP, which a new Windows lacks, and which DLLs find in their own folder. They are not
# linked into each DLL instead: our DLLs hand files and memory to each other, and Python's file descriptors are those of one
# runtime. The C library itself, ucrtbase, is part of Windows.
set(CMAKE_INSTALL_SYSTEM_RUNTIME_LIBS_SKIP ON)
set(CMAKE_INSTALL_OPENMP_LIBRARIES         ON)
include(InstallRequiredSystemLibraries)
set(SNAPKV_RUNTIME ${CMAKE_INSTALL_SYSTEM_RUNTIME_LIBS})
list(FILTER SNAPKV_RUNTIME INCLUDE REGEX "/(vcruntime140|vcruntime140_1|msvcp140|vcomp140)\\.dll$")
install(FILES ${SNAPKV_RUNTIME} DESTINATION snapkv_local/lib COMPONENT snapkv)
