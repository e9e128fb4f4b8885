// Working memory of a thread: grows to what was asked for most, and stays.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

class Buffer {
   public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { std::free(data_); }

    // Room for n values, whose content is unknown.
    template <class T>
    T *of(size_t n) {
        size_t n_bytes = (n * sizeof(T) + 63) / 64 * 64;
        if (n_bytes > n_bytes_) {
            std::free(data_);
            data_ = std::aligned_alloc(64, n_bytes);
            n_bytes_ = data_ ? n_bytes : 0;
            if (!data_) throw std::bad_alloc();
        }
        return static_cast<T *>(data_);
    }

   private:
    void *data_ = nullptr;
    size_t n_bytes_ = 0;
};
