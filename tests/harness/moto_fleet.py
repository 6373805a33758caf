"""Moto, the AWS of the tests: `serve` runs moto, and every other command changes a running moto.

The script needs the Python of moto's environment, which includes boto3. Each call takes one command and prints one JSON
value.
"""

import argparse
import json
import os
import sys
import threading
import time

# Loopback addresses, so that real servers can listen on the addresses of moto's instances. The subnet excludes
# 127.0.0.1.
VPC = "127.0.0.0/16"
SUBNET = "127.0.16.0/20"


def serve(_):
    """Runs moto on a free port, which moto prints to its log. Moto ends when its parent ends, for any reason."""
    parent = os.getppid()

    def follow():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    from moto.server import main

    main(["-H", "127.0.0.1", "-p", "0"])


def launch(args):
    """Makes an Auto Scaling group of `size` instances in a separate network."""
    ec2, autoscaling = client(args, "ec2"), client(args, "autoscaling")
    vpc = ec2.create_vpc(CidrBlock=VPC)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=SUBNET)["Subnet"]["SubnetId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    ec2.create_launch_template(
        LaunchTemplateName=args.group, LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"}
    )
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=args.group,
        LaunchTemplate={"LaunchTemplateName": args.group, "Version": "$Latest"},
        MinSize=0,
        MaxSize=100,
        DesiredCapacity=args.size,
        VPCZoneIdentifier=subnet,
    )
    return instances(args)


def resize(args):
    client(args, "autoscaling").set_desired_capacity(AutoScalingGroupName=args.group, DesiredCapacity=args.size)
    return instances(args)


def terminate(args):
    """Terminates one instance. The group doesn't replace it."""
    client(args, "autoscaling").terminate_instance_in_auto_scaling_group(
        InstanceId=args.instance, ShouldDecrementDesiredCapacity=True
    )


def standby(args):
    client(args, "autoscaling").enter_standby(
        InstanceIds=[args.instance], AutoScalingGroupName=args.group, ShouldDecrementDesiredCapacity=True
    )


def detach(args):
    client(args, "autoscaling").detach_instances(
        InstanceIds=args.instances, AutoScalingGroupName=args.group, ShouldDecrementDesiredCapacity=True
    )


def attach(args):
    client(args, "autoscaling").attach_instances(InstanceIds=args.instances, AutoScalingGroupName=args.group)


def instances(args):
    """Prints the group's members: [{"id": …, "address": …, "state": …}]."""
    groups = client(args, "autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[args.group])
    states = {i["InstanceId"]: i["LifecycleState"] for i in groups["AutoScalingGroups"][0]["Instances"]}
    if not states:
        return []
    reservations = client(args, "ec2").describe_instances(InstanceIds=list(states))["Reservations"]
    return [
        {"id": i["InstanceId"], "address": i["PrivateIpAddress"], "state": states[i["InstanceId"]]}
        for reservation in reservations
        for i in reservation["Instances"]
    ]


def create_ca(args):
    """Makes an active root CA: {"arn": …, "pem": …}."""
    pca = client(args, "acm-pca")
    arn = pca.create_certificate_authority(
        CertificateAuthorityType="ROOT",
        UsageMode=args.usage_mode,
        CertificateAuthorityConfiguration={
            "KeyAlgorithm": "RSA_2048",
            "SigningAlgorithm": "SHA256WITHRSA",
            "Subject": {"CommonName": args.name},
        },
    )["CertificateAuthorityArn"]
    certificate = pca.issue_certificate(
        CertificateAuthorityArn=arn,
        Csr=pca.get_certificate_authority_csr(CertificateAuthorityArn=arn)["Csr"].encode(),
        SigningAlgorithm="SHA256WITHRSA",
        TemplateArn="arn:aws:acm-pca:::template/RootCACertificate/V1",
        Validity={"Type": "YEARS", "Value": 10},
    )["CertificateArn"]
    pem = pca.get_certificate(CertificateAuthorityArn=arn, CertificateArn=certificate)["Certificate"]
    pca.import_certificate_authority_certificate(CertificateAuthorityArn=arn, Certificate=pem.encode())
    return {"arn": arn, "pem": pem}


def certificate(args):
    """Prints an issued certificate: {"pem": …}."""
    answer = client(args, "acm-pca").get_certificate(CertificateAuthorityArn=args.ca, CertificateArn=args.certificate)
    return {"pem": answer["Certificate"]}


def put_secret(args):
    """Makes standard input the current version of a secret: {"arn": …, "version": …}."""
    secrets = client(args, "secretsmanager")
    content = sys.stdin.buffer.read()
    value = {"SecretBinary": content} if args.binary else {"SecretString": content.decode()}
    try:
        answer = secrets.put_secret_value(SecretId=args.name, **value)
    except secrets.exceptions.ResourceNotFoundException:
        answer = secrets.create_secret(Name=args.name, **value)
    return {"arn": answer["ARN"], "version": answer["VersionId"]}


def make_current(args):
    """Moves AWSCURRENT back to an older version."""
    secrets = client(args, "secretsmanager")
    versions = secrets.list_secret_version_ids(SecretId=args.name)["Versions"]
    current = next(v["VersionId"] for v in versions if "AWSCURRENT" in v["VersionStages"])
    secrets.update_secret_version_stage(
        SecretId=args.name, VersionStage="AWSCURRENT", MoveToVersionId=args.version, RemoveFromVersionId=current
    )


def delete_secret(args):
    """Deletes a secret at once."""
    client(args, "secretsmanager").delete_secret(SecretId=args.name, ForceDeleteWithoutRecovery=True)


def client(args, service):
    import boto3

    return boto3.client(
        service,
        endpoint_url=args.endpoint,
        region_name=args.region,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint")
    parser.add_argument("--region", default="eu-west-1")
    commands = parser.add_subparsers(required=True)

    def command(run, *arguments):
        sub = commands.add_parser(run.__name__.replace("_", "-"))
        sub.set_defaults(run=run)
        for name, options in arguments:
            sub.add_argument(name, **options)

    command(serve)
    command(launch, ("group", {}), ("size", {"type": int}))
    command(resize, ("group", {}), ("size", {"type": int}))
    command(terminate, ("instance", {}))
    command(standby, ("group", {}), ("instance", {}))
    command(detach, ("group", {}), ("instances", {"nargs": "+"}))
    command(attach, ("group", {}), ("instances", {"nargs": "+"}))
    command(instances, ("group", {}))
    command(create_ca, ("name", {}), ("--usage-mode", {"default": "GENERAL_PURPOSE"}))
    command(certificate, ("ca", {}), ("certificate", {}))
    command(put_secret, ("name", {}), ("--binary", {"action": "store_true"}))
    command(delete_secret, ("name", {}))
    command(make_current, ("name", {}), ("version", {}))
    args = parser.parse_args()
    json.dump(args.run(args), sys.stdout)


if __name__ == "__main__":
    main()
