// SPDX-License-Identifier: Apache-2.0

// Package istiod holds tests of the built proxy under Istio's own control
// plane: its discovery server and authority, its node agent's server, its rules
// in pods, its istioctl. Package e2e tests what the proxy does as such; here
// counts that Istio and the proxy understand each other.
//
// It is a module of its own, since Istio brings some 140 others. Their versions
// are those that fit the one of Istio; never raise them one by one.
package istiod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// The programs under test, and beside it. The linker takes its time with
// Istio's, so it stays where the next run finds it.
const istio = "../../bin/istio"

var ztunnel string

func TestMain(m *testing.M) {
	netlab.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if privileged.Missing() != nil {
		return m.Run() // every test says why it is skipped
	}
	dir, err := os.MkdirTemp("", "ztistiod-")
	if err == nil {
		defer os.RemoveAll(dir)
		ztunnel = filepath.Join(dir, "ztunnel")
		cgo, args := "CGO_ENABLED=0", []string{"./cmd/ztunnel"}
		if os.Getenv("ZTUNNEL_RACE") != "" {
			cgo, args = "CGO_ENABLED=1", []string{"-race", "./cmd/ztunnel"}
		}
		err = errors.Join(
			build("../..", ztunnel, []string{cgo}, args...),
			build(".", istio, nil, "-ldflags=-s -w", "./cmd/istio"),
		)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds a program of the module in dir.
func build(dir, path string, env []string, args ...string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", filepath.Base(path), err, out)
	}
	return nil
}
