// SPDX-License-Identifier: Apache-2.0

// Package app puts the proxy together: it reads the environment contract,
// builds every part, starts them in order and stops them in order. It is the
// only package that knows all the others; they meet here as functions and
// small structs, and nobody but main and tests imports it.
package app

import (
	"context"
	"crypto/fips140"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

const usage = `commands:
  proxy    run the proxy (also without a command)
  check    look whether a proxy with this environment would work here
  cleanup  remove every trace of capture from this node
  explain  say what would become of a connection, and why: explain FROM TO[:PORT]
  top      show what the running proxy does
  version  print what was built
  help     print this
`

// Main runs the command that args name, args[0] being the program, and
// returns the exit status (contract 1.1).
func Main(args []string, env Env, stdout, stderr io.Writer) int {
	log, err := logs.New(logs.Config{Output: stdout, JSON: env.LogJSON(), Filter: env.LogFilter()})
	if err != nil {
		return fail(stderr, fmt.Errorf("invalid env var RUST_LOG=%s (%w)", env.LogFilter(), err))
	}
	defer log.Close()
	version := readBuildInfo(env.IstioVersion())
	command := "proxy"
	if len(args) > 1 {
		command = args[1]
	}
	switch command {
	case "proxy":
		err = proxy(args, env, log, version)
	case "check":
		err = check(args[2:], env, stdout)
	case "explain":
		err = explainCommand(args[2:], env, stdout)
	case "top":
		err = topCommand(args[2:], env, stdout)
	case "cleanup":
		err = cleanup(args, env, log)
	case "version":
		fmt.Fprintln(stdout, version)
	case "help":
		fmt.Fprintf(stdout, "%s\n%s", version, usage)
	default:
		fmt.Fprintf(stderr, "unknown command: %s\n", command)
		fmt.Fprintf(stdout, "%s\n%s", version, usage)
		return 1
	}
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errFound):
		return 1 // they are on stdout
	}
	return fail(stderr, err)
}

func fail(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return 1
}

// proxy runs until a signal or a fatal error.
func proxy(args []string, env Env, log *logs.Log, version BuildInfo) error {
	logger := logs.Target(log.Logger(), "ztunnel")
	logger.Info("version: " + version.String())
	cfg, err := Load(env, args[1:])
	if err != nil {
		return err
	}
	raiseDescriptorLimit(logger)
	if text, err := cfg.YAML(); err == nil {
		logger.Info("running with config: " + text)
	}
	for _, n := range cfg.Notices {
		logger.Log(context.Background(), n.Level, n.Text)
	}
	if err := cfg.unsupported(); err != nil {
		return err
	}
	if !fips140.Enabled() {
		return errFIPSOff
	}
	cfg.limitThreads()
	stop := newStopper(logger, func(status int) {
		_ = log.Close() // what is logged is written; the end does not wait for a reader who is gone
		os.Exit(status)
	})
	defer stop.close()
	return run(stop.ctx, nodeParams{cfg: cfg, version: version, log: log, stop: stop})
}

// limitThreads has so many threads run Go code at the same time, and no more.
// The reference has so many for its data plane; here what goes on beside that
// is within the limit too, but for calls that block in the kernel.
func (c *Config) limitThreads() { runtime.GOMAXPROCS(c.Threads) }

// errFIPSOff refuses to offer peers what the mesh does not allow: without FIPS
// mode crypto/tls has no way to leave out ChaCha20 (docs/decisions).
var errFIPSOff = errors.New("the FIPS mode of crypto/tls is off, so that TLS_CHACHA20_POLY1305_SHA256 would be offered and taken; " +
	"start without fips140=off in GODEBUG")

// unsupported names what the environment asks for and this build cannot do.
// To go on without it would be to do something else than was asked.
func (c *Config) unsupported() error {
	if !c.Proxy && !c.Dedicated {
		return errors.New("ENABLE_PROXY=false is not supported: pods that are captured would have no proxy")
	}
	return nil
}

// ignored names what the environment asks for that this build leaves out,
// where going on is safe: nothing is sent or accepted that was not asked for.
func (c *Config) ignored() []string {
	var out []string
	if usual := (DNSAddr{Localhost: true, Port: 15053}); c.DNSProxy && !c.Dedicated && c.DNSProxyAddr != usual {
		out = append(out, "DNS_PROXY_ADDR is not supported yet: the DNS of a node's pods is answered on port 15053 of localhost")
	}
	return out
}

func cleanup(args []string, env Env, log *logs.Log) error {
	cfg, err := Load(env, args[1:])
	if err != nil {
		return err
	}
	cc, err := cfg.capture()
	if err != nil {
		return err
	}
	if err := capture.Cleanup(context.Background(), cc); err != nil {
		return err
	}
	logs.Target(log.Logger(), "ztunnel").Info("removed every trace of capture")
	return nil
}

// raiseDescriptorLimit takes as many descriptors as the process may have.
func raiseDescriptorLimit(logger *slog.Logger) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		logger.Warn("failed to set file descriptor limits", slog.String("error", err.Error()))
		return
	}
	soft := limit.Cur
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		logger.Warn("failed to set file descriptor limits", slog.String("error", err.Error()))
		return
	}
	logger.Info(fmt.Sprintf("set file descriptor limits from %d to %d", soft, limit.Max))
}

// A stopper turns the requests to stop, whoever makes them, into the end of
// one context (contract 15.2).
type stopper struct {
	ctx     context.Context
	cancel  context.CancelFunc
	signals chan os.Signal
	exit    func(status int)
	done    chan struct{} // closed when listen has ended
	log     *slog.Logger
}

func newStopper(logger *slog.Logger, exit func(status int)) *stopper {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stopper{ctx: ctx, cancel: cancel, signals: make(chan os.Signal, 2), exit: exit, done: make(chan struct{}), log: logger}
	signal.Notify(s.signals, unix.SIGTERM, unix.SIGINT)
	go s.listen() // ends with close
	return s
}

// listen ends the process at a second SIGINT: whoever presses it twice means
// it.
func (s *stopper) listen() {
	defer close(s.done)
	interrupted := false
	for sig := range s.signals {
		if s.ctx.Err() == nil {
			s.log.Info(fmt.Sprintf("received signal %s, starting shutdown", signalName(sig)))
		}
		s.cancel()
		if sig != unix.SIGINT {
			continue
		}
		if interrupted {
			s.exit(0)
		}
		interrupted = true
	}
}

func signalName(sig os.Signal) string {
	if number, ok := sig.(unix.Signal); ok {
		return unix.SignalName(number)
	}
	return sig.String()
}

// quit is the request made through the admin page.
func (s *stopper) quit() {
	s.log.Info("received explicit shutdown signal")
	s.cancel()
}

func (s *stopper) close() {
	signal.Stop(s.signals)
	close(s.signals)
	<-s.done
	s.cancel()
}
