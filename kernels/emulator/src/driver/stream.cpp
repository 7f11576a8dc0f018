// Streams, events, and graphs made by capturing streams.
#include <chrono>
#include <thread>

#include "driver.hpp"

namespace driver {

namespace {

struct Event {
    std::shared_ptr<Mark> mark;
    std::shared_ptr<Capture> capture; // in which it was recorded last, if in one
};

struct Graph {
    std::vector<Work> works;
};

Handles<Stream>& streams() {
    static Handles<Stream>& streams = *new Handles<Stream>;
    return streams;
}

Handles<Event>& events() {
    static Handles<Event>& events = *new Handles<Event>;
    return events;
}

Handles<Graph>& graphs() {
    static Handles<Graph>& graphs = *new Handles<Graph>;
    return graphs;
}

// One lock for what is pending in all streams, as waiting for an event can run another stream.
std::recursive_mutex& pending_mutex() {
    static std::recursive_mutex& mutex = *new std::recursive_mutex;
    return mutex;
}

int stream_mode = EAGER;

double milliseconds_now() {
    auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}

void run_next(Stream* stream) {
    Task task = std::move(stream->pending.front());
    stream->pending.pop_front();
    if (task.waits_for)
        while (!task.waits_for->done) run_next(task.waits_for->stream);
    task.work();
}

void drain(Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    while (!stream->pending.empty()) run_next(stream);
}

void reach(const Mark& mark) {
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    while (!mark.done) run_next(mark.stream);
}

std::set<Stream*>& deferring_streams() {
    static std::set<Stream*>& streams = *new std::set<Stream*>;
    return streams;
}

} // namespace

Stream* find_stream(void* handle) {
    static Stream* default_stream = streams().add(new Stream);
    // 1 and 2 are the handles of the legacy and of the per-thread default stream.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return default_stream;
    return streams().find(handle);
}

int enqueue(Stream* stream, Work work) {
    if (stream->capture) {
        stream->capture->works.push_back(std::move(work));
        return SUCCESS;
    }
    if (stream_mode == EAGER) {
        work();
        return SUCCESS;
    }
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    stream->pending.push_back({std::move(work), nullptr});
    deferring_streams().insert(stream);
    return SUCCESS;
}

int synchronize(Stream* stream) {
    if (stream->capture) {
        stream->capture->invalid = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    count("synchronizations");
    drain(stream);
    return SUCCESS;
}

bool is_capturing() { return of_thread().n_captures > 0; }

void synchronize_all() {
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    for (Stream* stream : deferring_streams()) drain(stream);
}

void set_stream_mode(int mode) {
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    synchronize_all();
    stream_mode = mode;
}

} // namespace driver

using namespace driver;

API cuCtxSynchronize() {
    BEGIN_IN_CONTEXT();
    if (is_capturing()) return STREAM_CAPTURE_UNSUPPORTED;
    count("synchronizations");
    synchronize_all();
    return SUCCESS;
}

API cuStreamCreate(void** stream, unsigned) {
    BEGIN_IN_CONTEXT();
    *stream = streams().add(new Stream);
    return SUCCESS;
}

API cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}

API cuStreamDestroy_v2(void* handle) {
    BEGIN_IN_CONTEXT();
    Stream* stream = streams().find(handle);
    if (!stream) return INVALID_HANDLE;
    drain(stream);
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    deferring_streams().erase(stream);
    streams().remove(stream);
    delete stream;
    return SUCCESS;
}

API cuStreamSynchronize(void* handle) {
    BEGIN_IN_CONTEXT();
    Stream* stream = find_stream(handle);
    return stream ? synchronize(stream) : INVALID_HANDLE;
}

API cuStreamQuery(void* handle) {
    BEGIN_IN_CONTEXT();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    return stream->pending.empty() ? SUCCESS : NOT_READY;
}

// An event that was recorded in a capture draws the stream that waits for it into that capture.
API cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    BEGIN_IN_CONTEXT();
    Stream* stream = find_stream(handle);
    Event* event = events().find(event_handle);
    if (!stream || !event) return INVALID_HANDLE;
    if (event->capture) {
        if (!stream->capture) {
            stream->capture = event->capture;
            event->capture->streams.push_back(stream);
        }
        return stream->capture == event->capture ? SUCCESS : CAPTURED_EVENT;
    }
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    if (!event->mark || event->mark->done || stream->capture) return SUCCESS;
    stream->pending.push_back({[] {}, event->mark});
    deferring_streams().insert(stream);
    return SUCCESS;
}

API cuStreamAttachMemAsync(void* handle, Address, size_t, unsigned) {
    BEGIN_IN_CONTEXT();
    return find_stream(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    BEGIN_IN_CONTEXT();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    return enqueue(stream, [=] { function(argument); });
}

// ---- events ----

API cuEventCreate(void** event, unsigned) {
    BEGIN_IN_CONTEXT();
    *event = events().add(new Event);
    return SUCCESS;
}

API cuEventDestroy_v2(void* handle) {
    BEGIN_IN_CONTEXT();
    if (!events().remove(handle)) return INVALID_HANDLE;
    delete static_cast<Event*>(handle);
    return SUCCESS;
}

API cuEventRecord(void* handle, void* stream_handle) {
    BEGIN_IN_CONTEXT();
    Event* event = events().find(handle);
    Stream* stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    event->capture = stream->capture;
    if (stream->capture) return SUCCESS; // works of a capture run in the order they were given
    auto mark = std::make_shared<Mark>();
    mark->stream = stream;
    event->mark = mark;
    return enqueue(stream, [mark] {
        mark->milliseconds = milliseconds_now();
        mark->done = true;
    });
}

API cuEventQuery(void* handle) {
    BEGIN_IN_CONTEXT();
    Event* event = events().find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    std::lock_guard<std::recursive_mutex> guard(pending_mutex());
    if (!event->mark || event->mark->done) return SUCCESS;
    // Who asks again and again waits: until then the stream has come one task further.
    run_next(event->mark->stream);
    return NOT_READY;
}

API cuEventSynchronize(void* handle) {
    BEGIN_IN_CONTEXT();
    Event* event = events().find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    count("synchronizations");
    if (event->mark) reach(*event->mark);
    return SUCCESS;
}

API cuEventElapsedTime(float* milliseconds, void* first, void* second) {
    BEGIN_IN_CONTEXT();
    Event *a = events().find(first), *b = events().find(second);
    if (!a || !b || !a->mark || !b->mark) return INVALID_HANDLE;
    if (!a->mark->done || !b->mark->done) return NOT_READY;
    *milliseconds = float(b->mark->milliseconds - a->mark->milliseconds);
    return SUCCESS;
}

API cuEventElapsedTime_v2(float* milliseconds, void* first, void* second) {
    return cuEventElapsedTime(milliseconds, first, second);
}

// ---- graphs ----

API cuStreamBeginCapture_v2(void* handle, int) {
    BEGIN_IN_CONTEXT();
    Stream* stream = streams().find(handle); // the default stream cannot be captured
    if (!stream || stream == find_stream(nullptr)) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return STREAM_CAPTURE_UNSUPPORTED;
    drain(stream);
    stream->capture = std::make_shared<Capture>();
    stream->capture->streams.push_back(stream);
    of_thread().n_captures++;
    return SUCCESS;
}

API cuStreamEndCapture(void* handle, void** graph) {
    BEGIN_IN_CONTEXT();
    *graph = nullptr;
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    std::shared_ptr<Capture> capture = stream->capture;
    if (!capture || capture->streams.front() != stream) return STREAM_CAPTURE_UNMATCHED;
    for (Stream* taking_part : capture->streams) taking_part->capture = nullptr;
    of_thread().n_captures--;
    if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    *graph = graphs().add(new Graph{std::move(capture->works)});
    return SUCCESS;
}

API cuStreamIsCapturing(void* handle, int* status) {
    BEGIN_IN_CONTEXT();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    BEGIN_IN_CONTEXT();
    Graph* found = graphs().find(graph);
    if (!found) return INVALID_VALUE;
    *executable = graphs().add(new Graph(*found));
    return SUCCESS;
}

API cuGraphUpload(void* executable, void* stream) {
    BEGIN_IN_CONTEXT();
    return graphs().find(executable) && find_stream(stream) ? SUCCESS : INVALID_VALUE;
}

API cuGraphLaunch(void* executable, void* stream_handle) {
    BEGIN_IN_CONTEXT();
    Graph* graph = graphs().find(executable);
    Stream* stream = find_stream(stream_handle);
    if (!graph || !stream) return INVALID_VALUE;
    count("graph launches");
    return enqueue(stream, [works = graph->works] {
        for (const Work& work : works) work();
    });
}

API cuGraphDestroy(void* graph) {
    BEGIN_IN_CONTEXT();
    if (!graphs().remove(graph)) return INVALID_VALUE;
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}

API cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }
