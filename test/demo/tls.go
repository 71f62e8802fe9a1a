// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// TLS as it stands on the wire (RFC 8446 sections 4 and 5.1).
const (
	recordHeader = 5
	maxRecord    = 1<<14 + 256 // of an encrypted record

	typeChangeCipherSpec = 20
	typeHandshake        = 22
	typeApplicationData  = 23

	clientHello = 1
	serverHello = 2

	extensionVersions = 43
	version13         = 0x0304
)

// walkTLS parses one direction of a TLS 1.3 connection record by record, from
// the first byte on, and returns how many records that were. It must begin
// with a hello of the kind given; from the first encrypted record on, all are.
// Only a stream that is not complete may end inside a record.
//
//	hello --(change cipher spec | hello again)*--> encrypted*
func walkTLS(data []byte, hello byte, complete bool) (records int, err error) {
	encrypted := false
	for offset := 0; offset < len(data); records++ {
		record, err := cutRecord(data[offset:], records == 0)
		switch {
		case err != nil:
			return records, fmt.Errorf("at byte %d: %w", offset, err)
		case record == nil && complete:
			return records, fmt.Errorf("the record at byte %d is cut short", offset)
		case record == nil:
			return records, nil
		}
		kind, body := record[0], record[recordHeader:]
		switch {
		case kind == typeApplicationData && records > 0:
			encrypted = true
		case kind == typeHandshake && !encrypted && body[0] == hello:
			if hello == serverHello {
				if err := checkServerHello(body); err != nil {
					return records, err
				}
			}
		case kind == typeChangeCipherSpec && !encrypted && records > 0 && len(body) == 1:
		default:
			return records, fmt.Errorf("record %d at byte %d is of type %d and begins with %d", records, offset, kind, body[0])
		}
		offset += len(record)
	}
	if records == 0 && complete {
		return 0, errors.New("no record at all")
	}
	return records, nil
}

// cutRecord returns the record that data begins with, or nil if there is only
// a part of it. Only the first of a stream may carry the version of TLS 1.0.
func cutRecord(data []byte, first bool) ([]byte, error) {
	if len(data) < recordHeader {
		return nil, nil
	}
	version, length := binary.BigEndian.Uint16(data[1:]), int(binary.BigEndian.Uint16(data[3:]))
	if version != 0x0303 && (version != 0x0301 || !first) || length == 0 || length > maxRecord {
		return nil, fmt.Errorf("no TLS record: % x", data[:recordHeader])
	}
	if len(data) < recordHeader+length {
		return nil, nil
	}
	return data[:recordHeader+length], nil
}

// checkServerHello wants TLS 1.3 with one of the two suites of the mesh
// (RFC 8446 section 4.1.3). A HelloRetryRequest is one too.
func checkServerHello(hello []byte) error {
	const sessionID = 4 + 2 + 32 // behind type, length, version and random
	if len(hello) <= sessionID {
		return errors.New("a short ServerHello")
	}
	rest := hello[sessionID:]
	if len(rest) < 1+int(rest[0])+2+1+2 {
		return errors.New("a short ServerHello")
	}
	rest = rest[1+int(rest[0]):]
	if suite := binary.BigEndian.Uint16(rest); suite != 0x1301 && suite != 0x1302 {
		return fmt.Errorf("suite %#04x", suite)
	}
	for rest = rest[2+1+2:]; len(rest) >= 4; {
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if rest = rest[4:]; size > len(rest) {
			break
		}
		if kind == extensionVersions && size == 2 {
			if v := binary.BigEndian.Uint16(rest); v != version13 {
				return fmt.Errorf("version %#04x", v)
			}
			return nil
		}
		rest = rest[size:]
	}
	return errors.New("a ServerHello that does not choose TLS 1.3")
}
