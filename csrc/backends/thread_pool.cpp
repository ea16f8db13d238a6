#include "thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace ebm {
namespace {

std::atomic<int> wanted_threads{0};

// In a child of fork no thread of the parent lives on, and torch's pool would wait for them for ever.
std::atomic<bool> forked{false};

class NativePool {
public:
    // fn(task) for task in [0, num_tasks), on the calling thread and num_tasks - 1 workers.
    void run(int num_tasks, void (*fn)(int task, void* context), void* context) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) {  // another thread of the user is in: a second set of workers would only get in its way
            for (int task = 0; task < num_tasks; ++task) fn(task, context);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < num_tasks - 1) {
                int id = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, id, seen = generation_] { work(id, seen); });
                workers_.back().detach();
            }
            fn_ = fn;
            context_ = context;
            num_tasks_ = num_tasks;
            pending_ = static_cast<int>(workers_.size());
            ++generation_;
        }
        start_.notify_all();
        fn(0, context);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return pending_ == 0; });
    }

private:
    void work(int id, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (id < num_tasks_) {
                auto fn = fn_;
                auto context = context_;
                lock.unlock();
                fn(id, context);
                lock.lock();
            }
            if (--pending_ == 0) done_.notify_one();
        }
    }

    std::mutex owner_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    void (*fn_)(int, void*) = nullptr;
    void* context_ = nullptr;
    int num_tasks_ = 0, pending_ = 0;
    uint64_t generation_ = 0;
};

// Never destroyed: its workers outlive main.
std::atomic<NativePool*> native_pool{nullptr};

NativePool& pool() {
    NativePool* p = native_pool.load();
    if (!p) {
        NativePool* fresh = new NativePool;
        if (native_pool.compare_exchange_strong(p, fresh)) return *fresh;
        delete fresh;
    }
    return *p;
}

const int at_fork_installed = pthread_atfork(nullptr, nullptr, [] {
    forked.store(true);
    native_pool.store(nullptr);
});

// torch/csrc/stable/c/shim.h, stable since torch 2.10; looked up in the process, so that nothing links torch.
struct TorchPool {
    int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context) = nullptr;
    int32_t (*get_num_threads)(uint32_t* out) = nullptr;
};

const TorchPool* torch_pool() {
    static std::atomic<const TorchPool*> found{nullptr};
    if (forked.load()) return nullptr;
    if (const TorchPool* p = found.load()) return p;
    const char* choice = std::getenv("EBMCORE_POOL");
    if (choice && std::strcmp(choice, "native") == 0) return nullptr;
    void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
    if (!library) return nullptr;
    static TorchPool pool;
    pool.parallel_for = reinterpret_cast<decltype(pool.parallel_for)>(dlsym(library, "torch_parallel_for"));
    pool.get_num_threads = reinterpret_cast<decltype(pool.get_num_threads)>(dlsym(library, "torch_get_num_threads"));
    if (!pool.parallel_for || !pool.get_num_threads) return nullptr;
    found.store(&pool);
    return &pool;
}

struct Cut {
    int64_t size;
    int num_tasks;
    RangeFn fn;
    void* context;

    static void task(int index, void* context) {
        const Cut& cut = *static_cast<const Cut*>(context);
        int64_t part = cut.size / cut.num_tasks, rest = cut.size % cut.num_tasks;
        int64_t begin = index * part + (index < rest ? index : rest);
        cut.fn(begin, begin + part + (index < rest), cut.context);
    }
    static void tasks(int64_t begin, int64_t end, void* context) {
        for (int64_t i = begin; i < end; ++i) task(static_cast<int>(i), context);
    }
};

}  // namespace

void set_num_threads(int num_threads) { wanted_threads.store(num_threads); }

int get_num_threads() {
    if (int n = wanted_threads.load()) return n;
    uint32_t n = 0;
    if (const TorchPool* torch = torch_pool(); torch && torch->get_num_threads(&n) == 0 && n > 0) return static_cast<int>(n);
    return static_cast<int>(std::thread::hardware_concurrency() > 0 ? std::thread::hardware_concurrency() : 1);
}

const char* thread_pool_name() { return torch_pool() ? "torch" : "native"; }

void parallel_for(int64_t size, int64_t grain, RangeFn fn, void* context) {
    if (size <= 0) return;
    int64_t most = (size + grain - 1) / grain;
    int num_tasks = get_num_threads();
    if (most < num_tasks) num_tasks = static_cast<int>(most);
    if (num_tasks <= 1) return fn(0, size, context);
    Cut cut{size, num_tasks, fn, context};
    const TorchPool* torch = torch_pool();
    if (torch && torch->parallel_for(0, num_tasks, 1, Cut::tasks, &cut) == 0) return;
    pool().run(num_tasks, Cut::task, &cut);
}

}  // namespace ebm
