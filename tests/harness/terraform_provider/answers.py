"""What AWS answers to the data sources of the modules, in the form that AWS documents."""

# The root and a subordinate CA below it. Nobody verifies these texts.
ROOT = "-----BEGIN CERTIFICATE-----\nUk9PVA==\n-----END CERTIFICATE-----"
SUBORDINATE = "-----BEGIN CERTIFICATE-----\nU1VCT1JESU5BVEU=\n-----END CERTIFICATE-----"

ANSWERS = {
    # https://docs.aws.amazon.com/privateca/latest/APIReference/API_CertificateAuthority.html
    "aws_acmpca_certificate_authority": {
        "certificate": SUBORDINATE,
        "certificate_chain": ROOT,
        "status": "ACTIVE",
        "type": "SUBORDINATE",
        "usage_mode": "SHORT_LIVED_CERTIFICATE",
    },
    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/device_naming.html
    "aws_ami": {"root_device_name": "/dev/xvda"},
    "aws_caller_identity": {"account_id": "111122223333"},
    "aws_partition": {"partition": "aws", "dns_suffix": "amazonaws.com"},
    # https://docs.aws.amazon.com/Route53/latest/APIReference/API_HostedZone.html
    "aws_route53_zone": {"name": "internal", "zone_id": "Z0123456789ABCDEFGHIJ"},
}

PLAIN = {"string": "", "number": 0, "bool": False, "list": [], "set": [], "map": {}}


def of(type_name, config, region):
    """The attributes of a data source that the modules use."""
    if type_name == "aws_region":
        name = region or "eu-west-1"
        return {"region": name, "name": name, "id": name}
    return ANSWERS.get(type_name, {})


def plain(name, kind):
    """A value for an attribute that the modules don't use."""
    return PLAIN[kind if isinstance(kind, str) else kind[0]]
