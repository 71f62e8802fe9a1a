// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// rootLife is that of Istio's self-signed root: ten years.
const rootLife = 10 * 365 * 24 * time.Hour

// establish makes what is missing of an authority in dir. When it returns
// without error both files exist, whoever made them.
func establish(dir string, now time.Time) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	keyPath, rootPath := filepath.Join(dir, keyFile), filepath.Join(dir, rootFile)
	haveKey, err := exists(keyPath)
	if err != nil {
		return err
	}
	if !haveKey {
		if err := establishKey(dir); err != nil {
			return err
		}
	}
	haveRoot, err := exists(rootPath)
	if err != nil || haveRoot {
		return err
	}
	text, err := read(keyPath)
	if err != nil {
		return err
	}
	key, err := parseKey(text)
	if err != nil {
		return fmt.Errorf("%s: %v", keyPath, err)
	}
	der, err := newRoot(key, now)
	if err != nil {
		return fmt.Errorf("make %s: %v", rootPath, err)
	}
	return publish(dir, rootFile, encode("CERTIFICATE", der))
}

// establishKey makes a key, unless there is a root certificate without one: no
// new key would be that root's. The key is looked for once more then, since
// another process may have published both after we looked the first time.
func establishKey(dir string) error {
	keyPath, rootPath := filepath.Join(dir, keyFile), filepath.Join(dir, rootFile)
	haveRoot, err := exists(rootPath)
	if err != nil {
		return err
	}
	if haveRoot {
		haveKey, err := exists(keyPath)
		if err != nil {
			return err
		}
		if !haveKey {
			return fmt.Errorf("%s: missing, while %s is there", keyPath, rootPath)
		}
		return nil
	}
	text, err := newKeyText()
	if err != nil {
		return fmt.Errorf("make %s: %v", keyPath, err)
	}
	return publish(dir, keyFile, text)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// newRoot is a self-signed certificate for key. Its name holds part of the
// key's hash, so that two roots of ours can be told apart in a list of
// accepted authorities.
func newRoot(key crypto.Signer, now time.Time) ([]byte, error) {
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(pub)
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			Organization: []string{"ztunnel embedded CA"},
			CommonName:   fmt.Sprintf("ztunnel embedded CA %x", hash[:4]),
		},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
}
