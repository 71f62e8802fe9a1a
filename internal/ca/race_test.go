// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// childWord makes the test binary another process that opens the authority in
// the directory of its second argument, and prints the root.
const childWord = "open-embedded-ca"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == childWord {
		os.Exit(child(os.Args[2]))
	}
	os.Exit(m.Run())
}

// child waits for its standard input to end, so that many start at once.
func child(dir string) int {
	var none [1]byte
	_, _ = os.Stdin.Read(none[:])
	e, err := ca.OpenEmbedded(dir, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(hex.EncodeToString(e.Root().Raw))
	return 0
}

func TestProcessesThatStartAtOnceShareOneRoot(t *testing.T) {
	leak.Check(t)
	dir := filepath.Join(t.TempDir(), "ca")
	gateR, gateW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const n = 12
	var out, errs [n]bytes.Buffer
	var cmds [n]*exec.Cmd
	for i := range cmds {
		cmds[i] = exec.Command(os.Args[0], childWord, dir)
		cmds[i].Stdin, cmds[i].Stdout, cmds[i].Stderr = gateR, &out[i], &errs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	gateR.Close()
	gateW.Close()
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v: %s", i, err, errs[i].String())
		}
	}
	want := hex.EncodeToString(open(t, dir).Root().Raw)
	for i := range out {
		if out[i].String() != want {
			t.Errorf("process %d has another root", i)
		}
	}
}

func TestGoroutinesThatStartAtOnceShareOneRoot(t *testing.T) {
	leak.Check(t)
	for range 20 {
		dir := filepath.Join(t.TempDir(), "ca")
		var roots [16][]byte
		var start, done sync.WaitGroup
		start.Add(1)
		for i := range roots {
			done.Go(func() {
				start.Wait()
				e, err := ca.OpenEmbedded(dir, 0)
				if err != nil {
					t.Error(err)
					return
				}
				roots[i] = e.Root().Raw
			})
		}
		start.Done()
		done.Wait()
		for _, root := range roots {
			if !bytes.Equal(root, roots[0]) {
				t.Fatal("two roots")
			}
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 2 {
			t.Fatalf("the directory holds %v (%v)", files, err)
		}
	}
}

// What a process leaves that dies between the two files.
func TestAKeyWithoutARootGetsOne(t *testing.T) {
	dir := t.TempDir()
	key := ecKey(t, elliptic.P256())
	write(t, dir, pkcs8(t, key), nil)
	e := open(t, dir)
	if !key.PublicKey.Equal(e.Root().PublicKey) {
		t.Error("the root is not the key's")
	}
	issue(t, e, uri)
}
