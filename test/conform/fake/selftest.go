// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ztunnel-go/ztunnel/test/conform"
)

// A Report is what [SelfTest] has found.
type Report struct {
	// Played are the scenarios that the model without a fault passes, and
	// Skipped those that it cannot play.
	Played, Skipped []string
	// Failed are those that it fails, with the reason: of scenario or model,
	// one is wrong.
	Failed map[string]error
	// Missed are the faults that no scenario has noticed, Caught the others.
	Missed, Caught []string
}

// Patience of a step: the model without a fault is given time, one with a
// fault is not, since it is to fail.
const (
	patience       = 15 * time.Second
	shortPatience  = 3 * time.Second
	sideBySide     = 6
	firstOfStages  = 1
	faultsOfStages = 2
)

// SelfTest plays scripts on the model without a fault, and for each fault the
// scenario that has to fail.
func SelfTest(ctx context.Context, scripts []*conform.Script) (*Report, error) {
	r := &Report{Failed: map[string]error{}}
	scripts = slices.DeleteFunc(slices.Clone(scripts), func(s *conform.Script) bool {
		if unsupported(s.Name) == "" {
			return false
		}
		r.Skipped = append(r.Skipped, s.Name)
		return true
	})
	results, err := play(ctx, firstOfStages, NoFault(), patience, scripts)
	if err != nil {
		return nil, err
	}
	passed := map[string]*conform.Script{}
	for _, one := range results {
		switch {
		case one.Err == nil:
			passed[one.Script.Name] = one.Script
			r.Played = append(r.Played, one.Script.Name)
		case errors.Is(one.Err, conform.ErrUnsupported):
			r.Skipped = append(r.Skipped, one.Script.Name)
		default:
			r.Failed[one.Script.Name] = fmt.Errorf("%w\n%s", one.Err, one.Logs)
		}
	}
	return r, r.tryFaults(ctx, passed)
}

func (r *Report) tryFaults(ctx context.Context, passed map[string]*conform.Script) error {
	var mu sync.Mutex
	var errs []error
	var trying sync.WaitGroup
	room := make(chan struct{}, sideBySide)
	for i, f := range Faults() {
		script := passed[f.By]
		if script == nil {
			r.Missed = append(r.Missed, f.Name+": the scenario "+f.By+" does not pass without it")
			continue
		}
		trying.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			results, err := play(ctx, byte(faultsOfStages+i), f, shortPatience, []*conform.Script{script})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", f.Name, err))
			case len(results) == 1 && results[0].Err != nil && !errors.Is(results[0].Err, conform.ErrUnsupported):
				r.Caught = append(r.Caught, f.Name)
			default:
				r.Missed = append(r.Missed, f.Name+": "+f.By+" passes")
			}
		})
	}
	trying.Wait()
	return errors.Join(errs...)
}

func play(ctx context.Context, number byte, f Fault, patience time.Duration, scripts []*conform.Script) ([]conform.Result, error) {
	stage, err := New(number, f)
	if err != nil {
		return nil, err
	}
	suite := &conform.Suite{Stage: stage, Patience: patience}
	results, err := suite.Run(ctx, scripts)
	return results, errors.Join(err, stage.Close())
}

// unsupported says why the model cannot play a scenario that does not need
// anything that the stage lacks.
func unsupported(name string) string {
	const loopback = "every address here is a loopback address, and such clients are not announced"
	return map[string]string{
		"dump-of-the-configuration":                "the model has no configuration",
		"dump-of-certificates":                     "the model does not list certificates",
		"hbone-client-hello":                       "the suites are those of the calling program",
		"inbound-client-address-is-kept":           loopback,
		"inbound-plaintext-client-address-is-kept": loopback,
		"inbound-app-tunnel-with-proxy-protocol":   loopback,
		"config-port-is-taken":                     "the model does not fail to start",
		"life-second-interrupt":                    "the model knows no end without grace",
		"life-readiness-tasks-are-logged":          "the model has fewer parts",
	}[name]
}
