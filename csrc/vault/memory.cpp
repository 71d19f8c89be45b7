#include "vault/memory.h"

#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#endif

using pin_t = bool (*)(void * data, size_t size);
using unpin_t = void (*)(void * data);

static std::shared_ptr<uint8_t> allocate(size_t size) {
    auto buf = std::make_shared<ggml_backend_buffer_ptr>(llama_snapkv_alloc_buffer(ggml_backend_cpu_buffer_type(), size, "vault"));
    return { buf, (uint8_t *) ggml_backend_buffer_get_base(buf->get()) };
}

// every page is there, and locked if the device can do that: copies from and to it go at the speed of its link
static std::shared_ptr<uint8_t> allocate_pinned(size_t size, pin_t pin, unpin_t unpin) {
    auto memory = allocate(size);
    uint8_t * data = memory.get();
#ifdef __linux__
    // fewer pages, so that they are there sooner
    const uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t) data + page - 1) / page * page;
    (void) madvise((void *) begin, ((uintptr_t) data + size - begin) / page * page, MADV_HUGEPAGE);
#endif
    memset(data, 0, size);
    if (pin && pin(data, size)) {
        return { data, [memory, unpin](uint8_t * p) { unpin(p); } };
    }
    return memory;
}

[[noreturn]] static void fail(const std::string & dir, size_t size, const std::string & reason) {
    throw std::runtime_error(format("the vault gets no file of %.1f MiB in %s: %s. free space there, or name another folder", size / 1048576.0, dir.c_str(), reason.c_str()));
}

// a file without a name, mapped; its space is there before anything is written to it, since a full disk would end the process
#ifdef _WIN32
static std::wstring wide(const std::string & utf8) {
    const int n = MultiByteToWideChar(CP_UTF8, 0, utf8.data(), (int) utf8.size(), nullptr, 0);
    std::wstring res(std::max(n, 0), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, utf8.data(), (int) utf8.size(), res.data(), n);
    return res;
}

static std::shared_ptr<uint8_t> map_file(const std::string & dir, size_t size) {
    const auto reason = [] { return format("error %lu", GetLastError()); };
    wchar_t path[MAX_PATH + 1];
    if (GetTempFileNameW(wide(dir).c_str(), L"skv", 0, path) == 0) {
        fail(dir, size, reason());
    }
    const HANDLE file = CreateFileW(path, GENERIC_READ | GENERIC_WRITE, 0, nullptr, CREATE_ALWAYS, FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE, nullptr);
    if (file == INVALID_HANDLE_VALUE) {
        const std::string error = reason();
        DeleteFileW(path);
        fail(dir, size, error);
    }
    const HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READWRITE, (DWORD) ((uint64_t) size >> 32), (DWORD) size, nullptr);
    void * base = mapping ? MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, size) : nullptr;
    const std::string error = base ? "" : reason();
    if (mapping) {
        CloseHandle(mapping);
    }
    if (!base) {
        CloseHandle(file);
        fail(dir, size, error);
    }
    return { (uint8_t *) base, [file](uint8_t * p) {
                UnmapViewOfFile(p);
                CloseHandle(file);
            } };
}
#else
static int reserve_space(int fd, size_t size) {
#ifdef __APPLE__
    fstore_t store = { F_ALLOCATEALL, F_PEOFPOSMODE, 0, (off_t) size, 0 };
    return fcntl(fd, F_PREALLOCATE, &store) == 0 && ftruncate(fd, (off_t) size) == 0 ? 0 : errno;
#else
    return posix_fallocate(fd, 0, (off_t) size);
#endif
}

static std::shared_ptr<uint8_t> map_file(const std::string & dir, size_t size) {
    std::string path = dir + "/snapkv-vault-XXXXXX";
    const int fd = mkstemp(path.data());
    if (fd < 0) {
        fail(dir, size, strerror(errno));
    }
    unlink(path.c_str());
    const int error = reserve_space(fd, size);
    void * base = error == 0 ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    const std::string reason = strerror(error == 0 ? errno : error);
    close(fd);
    if (base == MAP_FAILED) {
        fail(dir, size, reason);
    }
    return { (uint8_t *) base, [size](uint8_t * p) { munmap(p, size); } };
}
#endif

llama_snapkv_vault_memory::llama_snapkv_vault_memory(std::vector<size_t> sizes, ggml_backend_dev_t device, const std::string & dir) :
    pieces(sizes.size()) {
    if (!dir.empty()) {
        size_t total = 0;
        for (const size_t size : sizes) {
            total += size;
        }
        const auto file = map_file(dir, total);
        size_t offset = 0;
        for (size_t i = 0; i < sizes.size(); ++i) {
            pieces[i].set_value({ file, file.get() + offset });
            offset += sizes[i];
        }
        return;
    }
    if (!device) {
        for (size_t i = 0; i < sizes.size(); ++i) {
            pieces[i].set_value(allocate(sizes[i]));
        }
        return;
    }
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    const auto pin = (pin_t) ggml_backend_reg_get_proc_address(reg, "snapkv_pin");
    const auto unpin = (unpin_t) ggml_backend_reg_get_proc_address(reg, "snapkv_unpin");
    ahead = std::thread([this, pin, unpin, sizes = std::move(sizes)] {
        for (size_t i = 0; i < sizes.size() && !stop; ++i) {
            try {
                pieces[i].set_value(allocate_pinned(sizes[i], pin, unpin));
            } catch (...) {
                pieces[i].set_exception(std::current_exception());
                return;
            }
        }
    });
}

llama_snapkv_vault_memory::~llama_snapkv_vault_memory() {
    stop = true;
    if (ahead.joinable()) {
        ahead.join();
    }
}

std::shared_ptr<uint8_t> llama_snapkv_vault_memory::take(size_t i) {
    return pieces[i].get_future().get();
}
