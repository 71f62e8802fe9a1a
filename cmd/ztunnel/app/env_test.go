// SPDX-License-Identifier: Apache-2.0

package app

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/ignore"
)

// MapEnv is an environment that holds vars and a number of CPUs, but for what
// this run of the tests is to go without (package ignore).
func MapEnv(vars map[string]string, cpus int) Env {
	vars = maps.Clone(vars)
	maps.DeleteFunc(vars, func(name, _ string) bool { return ignore.Variable(name) })
	lookup := func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
	environ := func() []string { return slices.Collect(maps.Keys(vars)) }
	return NewEnv(lookup, environ, cpus)
}

func TestDurations(t *testing.T) {
	const day = 24 * time.Hour
	for in, want := range map[string]time.Duration{
		"0": 0, "5": 5 * time.Second, " 5 ": 5 * time.Second, "24h": day, "1m30s": 90 * time.Second,
		"1m31": 91 * time.Second, "1m + 31": 91 * time.Second, "1 m 31 s": 91 * time.Second,
		"1m*60": time.Hour, "1m*60*20": 20 * time.Hour, "1m*10ms": 600 * time.Millisecond,
		"1Y": 365 * day, "1mon": 30 * day, "1week": 7 * day, "1D": day, "1hr": time.Hour, "2min": 2 * time.Minute,
		"3sec": 3 * time.Second, "4msec": 4 * time.Millisecond, "5µs": 5 * time.Microsecond,
		"5\u03bcs": 5 * time.Microsecond, "6us": 6 * time.Microsecond, "7ns": 7, "1d2h3min4s": day + 2*time.Hour + 184*time.Second,
		"292y": 292 * 365 * day,
	} {
		if got, err := parseDuration(in); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", in, got, err, want)
		}
	}
}

func TestDurationsThatAreNone(t *testing.T) {
	for in, reason := range map[string]string{
		"": "Empty input", " ": "expected digits", "h": "expected digits", "-1s": "expected digits",
		"1.5s": "expected digits", "0mxyz": `unknown unit "mxyz"`, "3ms-2ms": "expected digits", "1m+": "expected digits",
		"1m++2": "expected digits", "1m+2*3": "not support '+' with '*'", "1m2*3": "not support '+' with '*'",
		"580y*2": "overflow error", "99999999999999999999": "overflow error", "10000000000000000y+60": "overflow error",
		"400y": "overflow error", "300y300y": "overflow error",
	} {
		if got, err := parseDuration(in); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q is %v, %v; want an error with %q", in, got, err, reason)
		}
	}
}

func TestEveryPrefixOfADurationIsSensibleOrRefused(t *testing.T) {
	const whole = "1d 2h + 3min4s5msec"
	longest, err := parseDuration(whole)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		// Five milliseconds cut short are five minutes.
		if d, err := parseDuration(whole[:i]); err == nil && (d <= 0 || d > longest+5*time.Minute) {
			t.Errorf("%q is %v", whole[:i], d)
		}
	}
}

// FuzzDuration holds that what is accepted is not negative, and that what Go
// prints for whole seconds is read back.
func FuzzDuration(f *testing.F) {
	for _, seed := range []string{"", "5", "1m30s", "1m * 60", "5µs", "580y*2", "1mon+1", "1ns*1ns", "\xff1s", "1m\u00a0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		d, err := parseDuration(in)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q is negative: %v", in, d)
		}
		whole := d.Truncate(time.Second)
		if again, err := parseDuration(whole.String()); err != nil || again != whole {
			t.Errorf("%q is %v, and that read again %v, %v", in, whole, again, err)
		}
	})
}

func TestWorkerThreads(t *testing.T) {
	for _, tc := range []struct {
		in     string
		cpus   int
		want   int
		reason string
	}{
		{"1", 8, 1, ""}, {"16", 8, 16, ""}, {"0", 8, 8, ""},
		{"50%", 8, 4, ""}, {"100%", 8, 8, ""}, {"1%", 8, 1, ""}, {"30%", 8, 3, ""}, {"0.5%", 400, 2, ""},
		{"0%", 8, 0, "percentage must be between 0 and 100"},
		{"101%", 8, 0, "percentage must be between 0 and 100"},
		{"-1%", 8, 0, "percentage must be between 0 and 100"},
		{"NaN%", 8, 0, "percentage must be between 0 and 100"},
		{"x%", 8, 0, "invalid percentage: invalid float literal"},
		{"%", 8, 0, "invalid percentage: cannot parse float from empty string"},
		{"-1", 8, 0, "invalid number: invalid digit found in string"},
		{"", 8, 0, "invalid number: cannot parse integer from empty string"},
		{"1.5", 8, 0, "invalid number: invalid digit found in string"},
	} {
		got, err := workerThreads(tc.in, tc.cpus)
		if text := errorText(err); got != tc.want || text != tc.reason {
			t.Errorf("%q of %d is %d, %q; want %d, %q", tc.in, tc.cpus, got, text, tc.want, tc.reason)
		}
	}
}

func TestThreadsAreTakenFromTheFirstThatSpeaks(t *testing.T) {
	for _, tc := range []struct {
		name string
		vars map[string]string
		cpus int
		want int
	}{
		{"a quarter of the CPUs", nil, 16, 4},
		{"a quarter, rounded up", nil, 9, 3},
		{"never below two", nil, 1, 2},
		{"the request, if it is more", map[string]string{"ZTUNNEL_RESOURCE_CPU_REQUEST": "5500m"}, 16, 6},
		{"the limit", map[string]string{"ZTUNNEL_RESOURCE_CPU_LIMIT": "3"}, 16, 3},
		{"the limit may be one", map[string]string{"ZTUNNEL_RESOURCE_CPU_LIMIT": "200m"}, 16, 1},
		{"the request above the limit", map[string]string{"ZTUNNEL_RESOURCE_CPU_LIMIT": "1", "ZTUNNEL_RESOURCE_CPU_REQUEST": "2"}, 16, 2},
		{"concurrency", map[string]string{"PROXY_CONFIG": "{concurrency: 7, proxyMetadata: {}}"}, 16, 7},
		{"concurrency 0 is all CPUs", map[string]string{"PROXY_CONFIG": "{concurrency: 0, proxyMetadata: {}}"}, 16, 16},
		{"the variable beats concurrency", map[string]string{
			"PROXY_CONFIG": "{concurrency: 7, proxyMetadata: {}}", "ZTUNNEL_WORKER_THREADS": "3"}, 16, 3},
		{"a percentage of the limit", map[string]string{"ZTUNNEL_WORKER_THREADS": "50%", "ZTUNNEL_RESOURCE_CPU_LIMIT": "6"}, 16, 3},
		{"a percentage of the override", map[string]string{"ZTUNNEL_WORKER_THREADS": "50%", "ZTUNNEL_CPU_LIMIT": "10"}, 16, 5},
	} {
		if c := loadWith(t, tc.vars, tc.cpus); c.Threads != tc.want {
			t.Errorf("%s: %d threads, want %d", tc.name, c.Threads, tc.want)
		}
	}
}

func TestQuantities(t *testing.T) {
	const notPositive = "must be a positive CPU quantity"
	for _, tc := range []struct {
		in     string
		want   int
		reason string
	}{
		{"2", 2, ""}, {"1.5", 2, ""}, {"500m", 1, ""}, {"1001m", 2, ""}, {"1e1", 10, ""},
		{"0", 0, notPositive}, {"-1", 0, notPositive}, {"NaN", 0, notPositive}, {"inf", 0, notPositive},
		{"x", 0, "invalid float literal"}, {"0x10", 0, "invalid float literal"}, {"1_0", 0, "invalid float literal"},
		{"m", 0, "cannot parse float from empty string"},
	} {
		got, err := wholeCPUs(tc.in)
		if text := errorText(err); got != tc.want || text != tc.reason {
			t.Errorf("%q is %d, %q; want %d, %q", tc.in, got, text, tc.want, tc.reason)
		}
	}
}

// FuzzQuantity holds that what is accepted is a usable number of CPUs.
func TestEveryPrefixOfAQuantityIsPositiveOrRefused(t *testing.T) {
	for _, whole := range []string{"1500m", "2.75", "33.3%"} {
		for i := range whole {
			if n, err := wholeCPUs(whole[:i]); err == nil && n < 1 {
				t.Errorf("%q is %d CPUs", whole[:i], n)
			}
			if n, err := workerThreads(whole[:i], 8); err == nil && n < 1 {
				t.Errorf("%q is %d threads", whole[:i], n)
			}
		}
	}
}

func FuzzQuantity(f *testing.F) {
	for _, seed := range []string{"2", "1.5", "500m", "", "m", "-0", "1e400", "NaN", "0x1p-2", "50%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if n, err := wholeCPUs(in); err == nil && (n < 1 || n > math.MaxInt32) {
			t.Errorf("%q is %d CPUs", in, n)
		}
		if n, err := workerThreads(in, 8); err == nil && n < 1 {
			t.Errorf("%q is %d threads", in, n)
		}
	})
}

func TestBytesThatAreNotUTF8AreUnset(t *testing.T) {
	if c := load(t, map[string]string{"NETWORK": "\xff", "ENABLE_PROXY": "\xff"}); c.Network != "" || !c.Proxy {
		t.Errorf("network %q, proxy %v; want the defaults", c.Network, c.Proxy)
	}
}

func TestTheProcessHasAnEnvironment(t *testing.T) {
	t.Setenv("ISTIO_META_OF_THIS_TEST", "=x=")
	t.Setenv("RUST_LOG", "debug")
	t.Setenv("LOG_FORMAT", "json")
	e := ProcessEnv()
	found := false
	for _, v := range e.withPrefix("ISTIO_META_OF") {
		found = found || v == variable{"ISTIO_META_OF_THIS_TEST", "=x="}
	}
	if !found || e.cpus < 1 || e.LogFilter() != "debug" || !e.LogJSON() {
		t.Errorf("found %v, %d CPUs, filter %q, json %v", found, e.cpus, e.LogFilter(), e.LogJSON())
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
