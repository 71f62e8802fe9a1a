// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"runtime/pprof"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// Bounds and defaults of /debug/pprof/profile (contract 13.3).
	defaultSeconds, maxSeconds     = 10, 300
	defaultFrequency, maxFrequency = 100, 1000

	// usualFrequency is Go's own, in samples a second.
	usualFrequency = 100
)

// A profiler is Go's profiles under the reference's paths and parameters
// (contract 13.3).
type profiler struct {
	// heapOff says that somebody does not want heap profiles. Go samples
	// allocations in any case: this hides them alone.
	heapOff atomic.Bool
}

// pages are the profiler's own.
func (p *profiler) pages() []page {
	return []page{
		{"/debug/pprof/profile", "?seconds=10&amp;frequency=100: CPU profile", p.cpu},
		{"/debug/pprof/heap", "memory profile: what is allocated now, and by whom", p.heap},
		{"/debug/pprof/heap/profiling", "?activate=true|false: offer memory profiles, or not", p.toggle},
		{"/debug/pprof/allocs", "memory profile: what was allocated since the start", lookup("allocs")},
		{"/debug/pprof/goroutine", "the stacks of all goroutines", lookup("goroutine")},
	}
}

// number reads a query parameter between 1 and most.
func number(query url.Values, name string, usual, most int) (int, error) {
	if !query.Has(name) {
		return usual, nil
	}
	n, err := strconv.Atoi(query.Get(name))
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("invalid %s value; expected 1-%d", name, most)
	}
	return n, nil
}

// cpu records for as long as is asked, or until the client has gone.
func (p *profiler) cpu(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	seconds, err := number(query, "seconds", defaultSeconds, maxSeconds)
	if err != nil {
		text(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	frequency, err := number(query, "frequency", defaultFrequency, maxFrequency)
	if err != nil {
		text(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	var profile bytes.Buffer
	if err := startCPU(&profile, frequency); err != nil { // another is being recorded
		text(w, http.StatusInternalServerError, err.Error())
		return
	}
	timer := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	pprof.StopCPUProfile()
	binary(w, profile.Bytes())
}

// startCPU records at another frequency than Go's if that is asked for. The
// runtime then says on stderr that it cannot change the rate, and keeps it:
// there is no other way, and no other harm (golang/go#42502).
func startCPU(to *bytes.Buffer, frequency int) error {
	if frequency != usualFrequency {
		runtime.SetCPUProfileRate(frequency)
	}
	return pprof.StartCPUProfile(to)
}

func (p *profiler) heap(w http.ResponseWriter, r *http.Request) {
	if p.heapOff.Load() {
		text(w, http.StatusInternalServerError, "heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true")
		return
	}
	lookup("heap")(w, r)
}

func (p *profiler) toggle(w http.ResponseWriter, r *http.Request) {
	if query := r.URL.Query(); query.Has("activate") {
		switch value := query.Get("activate"); value {
		case "true", "false":
			p.heapOff.Store(value == "false")
		default:
			text(w, http.StatusBadRequest, fmt.Sprintf("invalid activate value %q; expected true or false\n", value))
			return
		}
	}
	text(w, http.StatusOK, fmt.Sprintf("heap profiling active: %v\n", !p.heapOff.Load()))
}

// lookup answers with one of the profiles that Go keeps at all times.
func lookup(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		var profile bytes.Buffer
		if err := pprof.Lookup(name).WriteTo(&profile, 0); err != nil {
			text(w, http.StatusInternalServerError, err.Error())
			return
		}
		binary(w, profile.Bytes())
	}
}

// binary answers without a content type, which net/http would guess.
func binary(w http.ResponseWriter, body []byte) {
	w.Header()["Content-Type"] = nil
	w.Write(body)
}
