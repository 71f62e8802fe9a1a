// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The tasks that readiness waits for (contract 13.1).
const (
	TaskState = "state manager"
	TaskProxy = "proxy"
	TaskDNS   = "dns proxy"
	TaskInPod = "workload proxy manager"
)

// Tasks are what has to be done before the node proxy is ready. All methods
// may be called from any goroutine.
type Tasks struct {
	log *slog.Logger

	mu      sync.Mutex
	pending map[string]time.Time       // guarded by mu; since when
	details map[string]func() []string // guarded by mu; see Explain
}

// NewTasks returns an empty list, with which the proxy is ready.
func NewTasks(logger *slog.Logger) *Tasks {
	return &Tasks{log: logger, pending: map[string]time.Time{}, details: map[string]func() []string{}}
}

// A Task is one thing that may be pending.
type Task struct {
	tasks *Tasks
	name  string
}

// Register adds a task, pending.
func (t *Tasks) Register(name string) *Task {
	k := &Task{t, name}
	k.Pending()
	return k
}

// Pending makes the task pending: also again, when what it stands for is lost.
func (k *Task) Pending() {
	t := k.tasks
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, already := t.pending[k.name]; !already {
		t.pending[k.name] = time.Now()
	}
}

// Explain has the readiness page say more of the task while it is pending: the
// lines that details returns, which is called for each answer.
func (k *Task) Explain(details func() []string) {
	k.tasks.mu.Lock()
	defer k.tasks.mu.Unlock()
	k.tasks.details[k.name] = details
}

// Done completes the task. It does nothing if the task is not pending.
func (k *Task) Done() {
	t := k.tasks
	t.mu.Lock()
	since, was := t.pending[k.name]
	delete(t.pending, k.name)
	left := len(t.pending)
	t.mu.Unlock()
	if !was {
		return
	}
	took := time.Since(since)
	if left == 0 {
		t.log.Info(fmt.Sprintf("Task '%s' complete (%v), marking server ready", k.name, took))
		return
	}
	t.log.Info(fmt.Sprintf("Task '%s' complete (%v), still awaiting %d tasks", k.name, took, left))
}

// Pending lists the names of the tasks that are pending, sorted.
func (t *Tasks) Pending() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.pending))
}

// explain has what is known of why tasks are pending.
func (t *Tasks) explain(pending []string) []string {
	var lines []string
	for _, name := range pending {
		t.mu.Lock()
		details := t.details[name]
		t.mu.Unlock()
		if details != nil {
			lines = append(lines, details()...)
		}
	}
	return lines
}

// Readiness answers kubelet: 200 when nothing is pending (contract 13.1). The
// first line is the contract's; others say what is known of why.
func Readiness(t *Tasks) http.Handler {
	return paths{"/healthz/ready": func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if pending := t.Pending(); len(pending) > 0 {
			lines := append([]string{"not ready, pending: " + strings.Join(pending, ", ")}, t.explain(pending)...)
			text(w, http.StatusInternalServerError, strings.Join(lines, "\n")+"\n")
			return
		}
		text(w, http.StatusOK, "ready\n")
	}}
}
