// SPDX-License-Identifier: Apache-2.0

// Conform plays the scenarios of test/conform against a ztunnel binary
// and says which it does not do as the contract has it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/conform/fake"
	"github.com/ztunnel-go/ztunnel/test/conform/lab"
)

func main() {
	lab.Main()
	var opts lab.Options
	flag.StringVar(&opts.Binary, "bin", "bin/ztunnel", "`path` of the ztunnel")
	flag.BoolVar(&opts.IstioCNI, "istio-cni", false, "capture by istio-cni's iptables rules")
	flag.StringVar(&opts.CADir, "ca", "", "`directory` with root-cert.pem and ca-key.pem of the binary's own authority")
	pattern := flag.String("run", "", "only scenarios whose name matches this `regexp`")
	beyond := flag.Bool("beyond", true, "also play what this project does otherwise than ztunnel")
	patience := flag.Duration("patience", 20*time.Second, "how long a step may take")
	verbose := flag.Bool("v", false, "name those that pass")
	selftest := flag.Bool("selftest", false, "no binary: play on a model with known faults, and say which go unnoticed (no root)")
	flag.Parse()
	opts.Binary, _ = filepath.Abs(opts.Binary)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	scripts, err := choose(*pattern, *beyond)
	switch {
	case err != nil:
	case *selftest:
		err = tryFaults(ctx, scripts)
	default:
		err = play(ctx, opts, scripts, *patience, *verbose)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conform:", err)
		os.Exit(1)
	}
}

func choose(pattern string, beyond bool) ([]*conform.Script, error) {
	only, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	dir, err := fs.Sub(conform.Scenarios(), "testdata")
	if err != nil {
		return nil, err
	}
	all, err := conform.ParseAll(dir)
	return slices.DeleteFunc(all, func(s *conform.Script) bool {
		return !only.MatchString(s.Name) || s.Beyond != "" && !beyond
	}), err
}

func tryFaults(ctx context.Context, scripts []*conform.Script) error {
	r, err := fake.SelfTest(ctx, scripts)
	if err != nil {
		return err
	}
	for name, why := range r.Failed {
		fmt.Printf("FAIL %s on the model without a fault: %v\n", name, why)
	}
	for _, m := range r.Missed {
		fmt.Printf("MISSED %s\n", m)
	}
	fmt.Printf("the model plays %d scenarios and lacks what %d need; %d faults caught, %d missed\n", len(r.Played), len(r.Skipped), len(r.Caught), len(r.Missed))
	if len(r.Failed)+len(r.Missed) > 0 {
		return errors.New("the scenarios do not hold what they say")
	}
	return nil
}

func play(ctx context.Context, opts lab.Options, scripts []*conform.Script, patience time.Duration, verbose bool) error {
	stage, err := lab.New(opts)
	if err != nil {
		return err
	}
	defer stage.Close()
	failed, began := 0, time.Now()
	suite := &conform.Suite{Stage: stage, Patience: patience, Report: func(r conform.Result) {
		switch {
		case r.Err != nil:
			failed++
			fmt.Printf("FAIL %s (contract %s, %v)\n     %s\n     %v\n%s", r.Script.Name, r.Script.Contract, r.Took.Round(time.Millisecond), r.Script.Title, r.Err, r.Logs)
		case verbose:
			fmt.Printf("ok   %s (contract %s, %v)\n", r.Script.Name, r.Script.Contract, r.Took.Round(time.Millisecond))
		}
	}}
	results, err := suite.Run(ctx, scripts)
	if err != nil {
		return err
	}
	fmt.Printf("%d scenarios, %d failed, %v\n", len(results), failed, time.Since(began).Round(time.Second))
	if failed > 0 {
		return fmt.Errorf("%d of %d scenarios failed", failed, len(results))
	}
	return nil
}
