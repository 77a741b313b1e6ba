"""Addresses that no download may reach, and spellings of URLs that mean harm, or that parsers read in more than one way."""

FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1",
    "192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::5db8:d70e", "::ffff:127.0.0.1", "::ffff:93.184.215.14",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "2620:4f:8000::1", "3ffe::1", "3fff::1", "4000::1",
    "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip

SPELLINGS = [
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/",
    "http://127.0.0.1./", "http://127.0.0.01/", "http://0x7f.0x0.0x0.0x1/", "http://127.0.1/", "http://0/", "http://0x/",
    "http://256.256.256.256/", "http://1.2.3.4.5/", "http://[::1%25lo]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/",
    "http://[::1/", "http://::1/", "http://[127.0.0.1]/", "http://[v1.a]/", "http://[]/", "http://127。0。0。1/", "http://１２７.0.0.1/",
    "http://①②⑦.⓪.⓪.①/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://good.example./", "http://good..example/",
    "http://.good.example/", "http://-a.example/", "http://gοοd.example/", "http://%31%32%37.0.0.1/", "http://%6cocalhost/",
    "http://127.0.0.1%2f@good.example/", "http://good.example%00.evil.example/", "http://good.example\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\", "http:/\\127.0.0.1/", "http:///127.0.0.1/", "http:////127.0.0.1/", "http:127.0.0.1", "http:/127.0.0.1",
    "//127.0.0.1/", "127.0.0.1", "http://good.example@127.0.0.1/", "http://user@good.example/", "http://user:pass@good.example/",
    "http://:@good.example/", "http://@good.example/", "http://127.0.0.1#@good.example/", "http://127.0.0.1?@good.example/",
    "http://good.example:80@127.0.0.1/", "http://a@b@good.example/", "http://good.example:22/", "http://good.example:8080/",
    "http://good.example:0/", "http://good.example:65536/", "http://good.example:080/", "http://good.example:-80/",
    "http://good.example:+80/", "http://good.example:８０/", "http://good.example:/", "http://good.example:80:80/",
    "https://good.example:6379/", "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:22/", "http://", "http://?/", "http://#/",
    "http://:80/", "ftp://good.example/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "data:image/png;base64,AAAA",
    "javascript:alert(1)", "ws://good.example/", "httpss://good.example/", "unix:/run/docker.sock", "jar:http://good.example!/",
    "dict://127.0.0.1/", "ldap://127.0.0.1/", "blob:http://good.example/", "", " http://good.example/", "http://good.example/ ",
    "http://good.example/\r\nHost: evil.example", "http://good.example/\n", "http://good.example/ HTTP/1.1\r\nX: y",
    "http://good\t.example/", "ht\ntp://good.example/", "http://good.example\r\n/", "http://good.example/\0", "http://good.example/\x7f",
    "http://good.example/é", "http://good.example/a\\b", f"http://good.example/{'a' * 2048}", f"http://{'a' * 64}.example/",
    f"http://{'a.' * 150}example/", "http://good.example‥/", "http://good.example。local/",
]  # fmt: skip
