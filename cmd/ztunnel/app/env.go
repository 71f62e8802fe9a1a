// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// An Env is what the process is told from outside: its environment variables
// and its number of CPUs. Nothing else in the tree reads either; tests give a
// map. It reads no files.
type Env struct {
	lookup func(name string) (string, bool)
	names  func() []string // sorted
	cpus   int
}

// NewEnv is an environment of a lookup, a list of NAME=value pairs, and a
// number of CPUs. Tests make theirs of a map.
func NewEnv(lookup func(string) (string, bool), environ func() []string, cpus int) Env {
	names := func() []string {
		var names []string
		for _, pair := range environ() {
			name, _, _ := strings.Cut(pair, "=")
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	return Env{lookup: lookup, names: names, cpus: cpus}
}

// ProcessEnv is the environment of this process. The number of CPUs is the
// one that the Go runtime found, which heeds affinity and cgroup limits.
func ProcessEnv() Env { return NewEnv(os.LookupEnv, os.Environ, runtime.GOMAXPROCS(0)) }

// LogFilter is RUST_LOG, or info (contract 14.1). Logging starts before
// anything else is read, hence the way past [Load].
func (e Env) LogFilter() string {
	if v, ok := e.get("RUST_LOG"); ok {
		return v
	}
	return "info"
}

// LogJSON reports whether LOG_FORMAT asks for JSON; any other value is plain
// (contract 1.4).
func (e Env) LogJSON() bool {
	v, _ := e.get("LOG_FORMAT")
	return v == "json"
}

// IstioVersion is ISTIO_META_ISTIO_VERSION or "unknown", for the version line
// and the istio_build metric (contract 1.1).
func (e Env) IstioVersion() string {
	if v, ok := e.get("ISTIO_META_ISTIO_VERSION"); ok {
		return v
	}
	return "unknown"
}

// get looks one variable up. Bytes that are not UTF-8 count as unset
// (contract 1.2).
func (e Env) get(name string) (string, bool) {
	v, ok := e.lookup(name)
	if !ok || !utf8.ValidString(v) {
		return "", false
	}
	return v, true
}

// withPrefix returns the variables whose names begin with prefix, sorted by
// name, names whole.
func (e Env) withPrefix(prefix string) []variable {
	var found []variable
	for _, name := range e.names() {
		if v, ok := e.get(name); ok && strings.HasPrefix(name, prefix) {
			found = append(found, variable{name, v})
		}
	}
	return found
}

type variable struct{ name, value string }

// A reader takes typed values out of an Env and keeps the first error, so that
// a long list of variables reads as a list.
type reader struct {
	Env
	err error
}

// fail notes that a variable's value is not of its type. The text is the
// reference's (contract 1.2).
func (r *reader) fail(name, value, reason string) {
	r.failWith(fmt.Errorf("invalid env var %s=%s (%s)", name, value, reason))
}

func (r *reader) failWith(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) text(name, def string) string {
	if v, ok := r.get(name); ok {
		return v
	}
	return def
}

func (r *reader) flag(name string, def bool) bool {
	if v := r.optionalFlag(name); v != nil {
		return *v
	}
	return def
}

func (r *reader) optionalFlag(name string) *bool {
	v, ok := r.get(name)
	if !ok {
		return nil
	}
	b := v == "true"
	if !b && v != "false" {
		r.fail(name, v, "provided string was not `true` or `false`")
		return nil
	}
	return &b
}

func (r *reader) duration(name string, def time.Duration) time.Duration {
	v, ok := r.get(name)
	if !ok {
		return def
	}
	d, err := parseDuration(v)
	if err != nil {
		r.fail(name, v, err.Error())
	}
	return d
}

func (r *reader) u16(name string, def uint16) uint16 {
	return uint16(r.unsigned(name, uint64(def), 16))
}
func (r *reader) u32(name string, def uint32) uint32 {
	return uint32(r.unsigned(name, uint64(def), 32))
}

// unsigned reads a decimal number of so many bits.
func (r *reader) unsigned(name string, def uint64, bits int) uint64 {
	v, ok := r.get(name)
	if !ok {
		return def
	}
	n, err := parseUnsigned(v, bits)
	if err != nil {
		r.fail(name, v, err.Error())
	}
	return n
}

// size is a u32 that must lie in [least, most].
func (r *reader) size(name string, def, least, most uint32) uint32 {
	n := r.u32(name, def)
	if r.err == nil && (n < least || n > most) {
		r.fail(name, strconv.FormatUint(uint64(n), 10), fmt.Sprintf("must be between %d and %d", least, most))
	}
	return n
}
