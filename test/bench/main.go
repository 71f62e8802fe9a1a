// SPDX-License-Identifier: Apache-2.0

// Bench measures what a connection through the proxy costs: throughput, round
// trips, new connections, new tunnels, DNS, passthrough and idle memory, between
// two nodes and within one. Beside each stands the same load on the same links
// with no proxy, taken in the same run. `make bench` builds and runs it; with
// PEER=<binary> another ztunnel is measured in turn, under the same load.
// docs/performance.md says what was found. It needs root.
//
// Whoever sends and answers are processes of their own in the pods' namespaces,
// one thread for each connection, in blocking system calls that Go's scheduler
// is not told of. The proxies are known from outside only: they are processes
// with an environment, an agent and pages.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options are the flags.
type options struct {
	ours     subject
	peer     subject
	json     string
	markdown bool
	only     *regexp.Regexp
	rounds   int
	idle     int
	profiles string
	duration time.Duration
}

func main() {
	generate() // does not return in a child that generates load
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (o options, err error) {
	o.ours, o.peer = subject{Name: "ours"}, subject{Name: "peer"}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.ours.Binary, "ztunnel", "bin/ztunnel", "`path` of our binary")
	fs.StringVar(&o.ours.Capture, "capture", ebpf, "how its pods are captured: ebpf, or istio-cni (its rules)")
	fs.Func("env", "`NAME=value` for its environment; may be repeated", o.ours.addEnv)
	fs.StringVar(&o.peer.Binary, "peer", "", "`path` of another ztunnel, measured in turn; it must take FAKE_CA and LOCAL_XDS_PATH")
	fs.StringVar(&o.peer.Capture, "peer-capture", istioCNI, "ebpf if that is one of ours")
	fs.Func("peer-env", "`NAME=value` for its environment; may be repeated", o.peer.addEnv)
	fs.StringVar(&o.json, "json", "", "write every single measurement to this `file`")
	fs.BoolVar(&o.markdown, "markdown", false, "print the table as Markdown")
	only := fs.String("only", "", "measure only rows whose name matches this `expression`")
	fs.IntVar(&o.rounds, "rounds", 3, "how often each is measured; medians are shown")
	fs.IntVar(&o.idle, "idle", 4000, "how many idle connections memory is divided by")
	fs.StringVar(&o.profiles, "profiles", "", "with idle connections, write each proxy's heap, goroutines and memory map to this `directory`")
	fs.DurationVar(&o.duration, "duration", 2*time.Second, "how long each measurement takes")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.only, err = regexp.Compile(*only)
	for _, s := range []*subject{&o.ours, &o.peer} {
		if err == nil {
			err = s.check()
		}
	}
	if err != nil {
		fmt.Fprintln(fs.Output(), "bench:", err)
	}
	return o, err
}

// A subject is a ztunnel that is measured, on both nodes at once.
type subject struct {
	Name    string   `json:"name"` // ours or peer
	Binary  string   `json:"-"`
	Capture string   `json:"capture"`
	Env     []string `json:"env,omitempty"`
}

// Ways of capture.
const (
	ebpf     = "ebpf"
	istioCNI = "istio-cni"
)

func (s *subject) addEnv(v string) error {
	if !strings.Contains(v, "=") {
		return errors.New("want NAME=value")
	}
	s.Env = append(s.Env, v)
	return nil
}

// check makes the path a good one from everywhere.
func (s *subject) check() (err error) {
	if s.Capture != ebpf && s.Capture != istioCNI {
		return fmt.Errorf("capture of %s by %q", s.Name, s.Capture)
	}
	if s.Binary == "" {
		return nil
	}
	if s.Binary, err = filepath.Abs(s.Binary); err == nil {
		_, err = os.Stat(s.Binary)
	}
	return err
}

// foreign says that the ztunnel is not one of ours.
func (s *subject) foreign() bool { return s.Name == "peer" && s.Capture == istioCNI }

func (s *subject) env() map[string]string {
	env := map[string]string{"CAPTURE": s.Capture, "RUST_LOG": "warn"}
	for _, v := range s.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	return env
}

func (o options) subjects() []subject {
	all := []subject{o.ours}
	if o.peer.Binary != "" {
		all = append(all, o.peer)
	}
	return all
}

// A report is all that a run found.
type report struct {
	Began    time.Time `json:"began"`
	Duration string    `json:"duration"` // of each measurement
	Rounds   int       `json:"rounds"`
	CPUs     int       `json:"cpus"`
	Kernel   string    `json:"kernel"`
	Load     string    `json:"load"` // average of the machine when the run began and ended
	Subjects []subject `json:"subjects"`
	Rows     rows      `json:"rows"`
}

func (o options) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces and their links are made by root: try sudo")
	}
	r := report{
		Began: time.Now(), Duration: o.duration.String(), Rounds: o.rounds,
		CPUs: runtime.NumCPU(), Kernel: kernel(), Load: loadAverage(), Subjects: o.subjects(),
	}
	var all rows
	for round := range o.rounds {
		for _, s := range r.Subjects {
			fmt.Fprintf(os.Stderr, "round %d of %d, %s\n", round+1, o.rounds, s.Name)
			if err := o.measure(ctx, s, &all); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	r.Load += " to " + loadAverage()
	all.sum(r.Subjects)
	r.Rows = all
	if err := r.show(os.Stdout, o.markdown); err != nil {
		return err
	}
	if o.json == "" {
		return all.failures()
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.json, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return all.failures()
}

// measure takes one round of everything with s on both nodes.
func (o options) measure(ctx context.Context, s subject, into *rows) (err error) {
	b := &bench{options: o, subject: s}
	defer func() { err = errors.Join(err, b.close(err)) }()
	if err := b.build(ctx); err != nil {
		return err
	}
	for _, c := range b.cells() {
		if !o.only.MatchString(c.name) || c.scraped && s.foreign() { // which reads its state once
			continue
		}
		samples, err := b.take(ctx, c)
		if err != nil {
			// A run takes long: one failure does not end it.
			fmt.Fprintf(os.Stderr, "%s, %s: %v\n", s.Name, c.name, err)
			into.fail(c, fmt.Sprintf("%s: %v", s.Name, err))
			if err := b.alive(ctx); err != nil {
				return err
			}
			continue
		}
		into.add(c, samples...)
	}
	return nil
}
